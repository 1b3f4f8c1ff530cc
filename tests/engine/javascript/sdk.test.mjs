// E2B's own SDK for JavaScript does here what it does with the cloud.
import assert from 'node:assert/strict'
import http from 'node:http'
import { after, before, test } from 'node:test'
import {
  AuthenticationError,
  CommandExitError,
  FileNotFoundError,
  InvalidArgumentError,
  NotFoundError,
  Sandbox as BaseSandbox,
  SandboxNotFoundError,
  TimeoutError,
} from 'e2b'
import { Sandbox } from '@e2b/code-interpreter'

const mark = { suite: `${process.pid} ü&=` }
let sandbox

before(async () => {
  sandbox = await Sandbox.create({ metadata: mark, envs: { GIVEN: 'value' }, timeoutMs: 120_000 })
})
after(() => sandbox.kill())

async function all(paginator) {
  const found = []
  while (paginator.hasNext) found.push(...(await paginator.nextItems()))
  return found
}

async function eventually(holds, limit = 10_000) {
  for (const end = Date.now() + limit; Date.now() < end; ) {
    if (await holds()) return
    await new Promise((resolve) => setTimeout(resolve, 20))
  }
  assert.fail('it never happened')
}

test('a sandbox is described as it was asked for', async () => {
  const info = await sandbox.getInfo()
  assert.equal(info.sandboxId, sandbox.sandboxId)
  assert.equal(info.templateId, 'code-interpreter-v1')
  assert.equal(info.state, 'running')
  assert.deepEqual(info.metadata, mark)
  assert.deepEqual(info.lifecycle, { onTimeout: 'kill', autoResume: false })
  const before = Date.now()
  await sandbox.setTimeout(200_000)
  const end = (await sandbox.getInfo()).endAt.getTime()
  assert.ok(end >= before + 199_000 && end <= Date.now() + 201_000)
})

test('sandboxes are listed by metadata and state, in pages', async () => {
  const other = await BaseSandbox.create({ metadata: mark, timeoutMs: 60_000 })
  try {
    const ids = [other.sandboxId, sandbox.sandboxId]
    const listed = await all(Sandbox.list({ query: { metadata: mark }, limit: 1 }))
    assert.deepEqual(listed.map((info) => info.sandboxId), ids)
    const paused = { query: { metadata: mark, state: ['paused'] } }
    assert.deepEqual(await all(Sandbox.list(paused)), [])
    assert.equal(await other.pause(), true)
    assert.equal(await other.pause(), false)
    assert.equal(await other.isRunning(), false)
    assert.equal((await all(Sandbox.list(paused))).length, 1)
    await other.connect({ timeoutMs: 60_000 })
    assert.equal(await other.isRunning(), true)
  } finally {
    assert.equal(await other.kill(), true)
  }
  assert.equal(await other.kill(), false)
  assert.equal(await other.isRunning(), false)
})

test('what is not there is an error of its own kind', async () => {
  await assert.rejects(Sandbox.connect('inone'), SandboxNotFoundError)
  await assert.rejects(Sandbox.getInfo('inone'), SandboxNotFoundError)
  await assert.rejects(Sandbox.create({ apiKey: 'e2b_wrong' }), AuthenticationError)
  await assert.rejects(Sandbox.create('no-such-template'), /404.*no-such-template/)
  await assert.rejects(sandbox.fork(), /501/)
  assert.equal(await Sandbox.kill('inone'), false)
})

test('code runs, keeps its variables and tells its errors', async () => {
  const seen = []
  const execution = await sandbox.runCode('x = 41; print("out"); x + 1', {
    onStdout: (message) => seen.push(message.line),
  })
  assert.equal(execution.text, '42')
  assert.deepEqual(execution.logs.stdout, ['out\n'])
  assert.deepEqual(seen, ['out\n'])
  const failed = await sandbox.runCode('1 / 0')
  assert.equal(failed.error.name, 'ZeroDivisionError')
  const env = await sandbox.runCode('import os; os.environ["GIVEN"] + os.environ["E"]', {
    envs: { E: '!' },
  })
  assert.equal(env.text, 'value!')
})

test('a chart comes with its data', async () => {
  const execution = await sandbox.runCode(
    'import matplotlib.pyplot as plt; plt.bar(["a", "b"], [1, 2]); plt.title("T"); plt.show()'
  )
  const [result] = execution.results
  assert.equal(result.chart.type, 'bar')
  assert.equal(result.chart.title, 'T')
  assert.deepEqual(result.chart.elements.map((bar) => [bar.label, bar.value]), [
    ['a', 1],
    ['b', 2],
  ])
  assert.ok(result.png.length > 1000)
})

test('contexts are apart, and JavaScript runs in one', async () => {
  const context = await sandbox.createCodeContext({ cwd: '/tmp' })
  assert.equal((await sandbox.runCode('x', { context })).error.name, 'NameError')
  assert.equal((await sandbox.runCode('import os; os.getcwd()', { context })).text, '/tmp')
  await sandbox.restartCodeContext(context)
  await sandbox.removeCodeContext(context)
  await assert.rejects(sandbox.removeCodeContext(context.id), NotFoundError)
  const js = await sandbox.runCode('const y = 40; y + 2', { language: 'js' })
  assert.equal(js.text, '42')
})

test('a timeout interrupts the code and keeps the variables', async () => {
  await sandbox.runCode('kept = 1')
  const run = sandbox.runCode('import time; time.sleep(60)', { timeoutMs: 500 })
  await assert.rejects(run, TimeoutError)
  assert.equal((await sandbox.runCode('kept')).text, '1')
})

test('commands have output, exit codes, input and limits', async () => {
  const { stdout } = await sandbox.commands.run('echo $GIVEN $OWN; pwd', {
    envs: { OWN: 'ü' },
    cwd: '/tmp',
  })
  assert.equal(stdout, 'value ü\n/tmp\n')
  await assert.rejects(sandbox.commands.run('echo bad >&2; exit 3'), (error) => {
    assert.ok(error instanceof CommandExitError)
    assert.deepEqual([error.exitCode, error.stderr], [3, 'bad\n'])
    return true
  })
  await assert.rejects(sandbox.commands.run('sleep 60', { timeoutMs: 500 }), TimeoutError)
  await assert.rejects(sandbox.commands.run('true', { cwd: '/nowhere' }), InvalidArgumentError)

  const cat = await sandbox.commands.run('cat', { background: true, stdin: true })
  assert.ok((await sandbox.commands.list()).some((process) => process.pid === cat.pid))
  const second = await sandbox.commands.connect(cat.pid)
  await sandbox.commands.sendStdin(cat.pid, 'hello')
  await sandbox.commands.closeStdin(cat.pid)
  assert.equal((await cat.wait()).stdout, 'hello')
  assert.equal((await second.wait()).stdout, 'hello')
  assert.equal(await sandbox.commands.kill(cat.pid), false)
})

test('files go in and out in every form', async () => {
  await sandbox.files.write('dir/ü.txt', 'text')
  assert.equal(await sandbox.files.read('dir/ü.txt'), 'text')
  const bytes = new Uint8Array(300_000).map((_, i) => i)
  await sandbox.files.write('bytes', bytes.buffer)
  assert.deepEqual(await sandbox.files.read('bytes', { format: 'bytes' }), bytes)
  assert.equal((await sandbox.files.read('bytes', { format: 'blob' })).size, bytes.length)
  let size = 0
  for await (const chunk of await sandbox.files.read('bytes', { format: 'stream' })) {
    size += chunk.length
  }
  assert.equal(size, bytes.length)
  await sandbox.files.write('zipped', 'z'.repeat(100_000), { gzip: true })
  assert.equal((await sandbox.files.read('zipped', { gzip: true })).length, 100_000)
  const written = await sandbox.files.write([
    { path: 'dir/a', data: 'a' },
    { path: 'dir/b', data: 'b' },
  ])
  assert.deepEqual(written.map((entry) => entry.name), ['a', 'b'])

  assert.deepEqual((await sandbox.files.list('dir')).map((entry) => entry.name), ['a', 'b', 'ü.txt'])
  assert.equal(await sandbox.files.makeDir('dir'), false)
  assert.equal((await sandbox.files.rename('dir/a', 'dir/c')).path, '/home/user/dir/c')
  assert.equal((await sandbox.files.getInfo('dir/c')).owner, 'user')
  await sandbox.files.remove('dir/c')
  assert.equal(await sandbox.files.exists('dir/c'), false)
  await assert.rejects(sandbox.files.read('dir/c'), FileNotFoundError)
  await assert.rejects(sandbox.files.list('dir/b'), InvalidArgumentError)
})

test('signed URLs open one file', async () => {
  await sandbox.files.write('signed', 'content')
  const url = await sandbox.downloadUrl('signed', { useSignatureExpiration: 60_000 })
  assert.equal(await (await fetch(url)).text(), 'content')
  assert.equal((await fetch(url.replace('path=signed', 'path=bytes'))).status, 401)
  const form = new FormData()
  form.append('file', new Blob(['new']), 'any')
  const upload = await fetch(await sandbox.uploadUrl('signed'), { method: 'POST', body: form })
  assert.equal(upload.status, 200)
  assert.equal(await sandbox.files.read('signed'), 'new')
})

test('a watch tells what happens', async () => {
  await sandbox.files.makeDir('watched')
  const events = []
  const handle = await sandbox.files.watchDir('watched', (event) => events.push(event), {
    recursive: true,
    includeEntry: true,
  })
  await sandbox.files.write('watched/below/file', 'x')
  await eventually(() => events.some((event) => event.name === 'below/file'))
  await handle.stop()
  await assert.rejects(sandbox.files.watchDir('nowhere', () => {}), FileNotFoundError)
})

test('a terminal takes input and shows output', async () => {
  let shown = ''
  const terminal = await sandbox.pty.create({
    cols: 80,
    rows: 24,
    onData: (data) => (shown += new TextDecoder().decode(data)),
  })
  await sandbox.pty.resize(terminal.pid, { cols: 100, rows: 30 })
  await sandbox.pty.sendInput(terminal.pid, new TextEncoder().encode('stty size; exit 4\n'))
  await assert.rejects(terminal.wait(), (error) => error.exitCode === 4)
  assert.match(shown, /30 100/)
})

test('a port of the sandbox is reached, and upgraded, under its host name', async () => {
  const program = `
import hashlib, base64, socket
listener = socket.create_server(("127.0.0.1", 8765))
while True:
    c, _ = listener.accept()
    head = b""
    while b"\\r\\n\\r\\n" not in head: head += c.recv(65536)
    fields = dict(l.split(b": ", 1) for l in head.lower().split(b"\\r\\n")[1:-2])
    if b"upgrade" not in fields:
        c.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\n\\r\\nhi")
        continue
    key = [l.split(b": ")[1] for l in head.split(b"\\r\\n") if l.lower().startswith(b"sec-websocket-key")][0]
    accept = base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
    c.sendall(b"HTTP/1.1 101 Switching Protocols\\r\\nUpgrade: websocket\\r\\nConnection: Upgrade\\r\\n"
              b"Sec-WebSocket-Accept: " + accept + b"\\r\\n\\r\\n\\x81\\x05hello")
`
  await sandbox.files.write('server.py', program)
  await sandbox.commands.run('python3 server.py', { background: true, timeoutMs: 0 })
  const host = sandbox.getHost(8765)
  assert.match(host, new RegExp(`^8765-${sandbox.sandboxId}\\.localhost:\\d+$`))
  const ask = (headers) =>
    new Promise((resolve, reject) => {
      const request = http.get(process.env.E2B_SANDBOX_URL, { headers: { Host: host, ...headers } })
      request.on('response', (response) => resolve([response.statusCode, response.resume()]))
      request.on('upgrade', (response, socket, head) => {
        socket.destroy()
        resolve([response.statusCode, head])
      })
      request.on('error', reject)
    })
  await eventually(async () => (await ask({}))[0] === 200)
  const upgrade = {
    Connection: 'Upgrade',
    Upgrade: 'websocket',
    'Sec-WebSocket-Key': 'dGhlIHNhbXBsZSBub25jZQ==',
    'Sec-WebSocket-Version': '13',
  }
  assert.equal((await ask(upgrade))[0], 101)
})

test('metrics, snapshots and the network can be asked for', async () => {
  const [sample] = await sandbox.getMetrics()
  assert.ok(sample.memUsed > 0 && sample.memTotal >= sample.memUsed)
  await sandbox.files.write('kept', 'in a snapshot')
  const { snapshotId } = await sandbox.createSnapshot()
  const copy = await Sandbox.create(snapshotId, { timeoutMs: 60_000 })
  try {
    assert.equal(await copy.files.read('kept'), 'in a snapshot')
    await copy.updateNetwork({ denyOut: ({ allTraffic }) => [allTraffic] })
    assert.deepEqual((await copy.getInfo()).network.denyOut, ['0.0.0.0/0'])
  } finally {
    await copy.kill()
    assert.equal(await Sandbox.deleteSnapshot(snapshotId), true)
  }
  assert.deepEqual(await all(sandbox.listSnapshots()), [])
})

test('git works in the sandbox', async () => {
  await sandbox.git.init('/home/user/repository')
  const status = await sandbox.git.status('/home/user/repository')
  assert.equal(status.isClean, true)
})

test('whoever waits learns that the sandbox was killed', async () => {
  const doomed = await Sandbox.create({ timeoutMs: 60_000 })
  const waiting = [doomed.runCode('import time; time.sleep(60)'), doomed.commands.run('sleep 60')]
  const told = waiting.map((promise) => assert.rejects(promise, TimeoutError))
  await eventually(async () => (await doomed.commands.list()).length === 1)
  await doomed.kill()
  await Promise.all(told)
  await assert.rejects(doomed.files.read('any'), TimeoutError)
})
