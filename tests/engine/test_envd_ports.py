"""The sandbox's ports: envd's small endpoints, and the servers that a user runs inside."""

from collections.abc import AsyncIterator

import anyio
import httpx
import pytest
from e2b_code_interpreter import E2B, AsyncSandbox

SERVER = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    def do_POST(self):
        body = self.rfile.read(int(self.headers['content-length']))
        answer = repr((self.path, self.headers['x-mine'], len(body))).encode()
        self.send_response(201)
        self.send_header('content-length', str(len(answer)))
        self.send_header('x-theirs', 'yes')
        self.end_headers()
        self.wfile.write(answer)
    def do_GET(self):
        self.send_response(200)
        self.send_header('transfer-encoding', 'chunked')
        self.end_headers()
        for i in range(3):
            self.wfile.write(b'5\\r\\npart%d\\r\\n' % i)
        if self.path == '/cut':
            self.close_connection = True
        else:
            self.wfile.write(b'0\\r\\n\\r\\n')
    def log_message(self, *args): pass
server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
print(server.server_port, flush=True)
server.serve_forever()
"""


def to_port(sandbox: AsyncSandbox, port: int) -> httpx.AsyncClient:
    """A plain HTTP client of one port, with the headers that the SDK would send."""
    config = sandbox.connection_config
    headers = {
        "E2b-Sandbox-Id": sandbox.sandbox_id,
        "E2b-Sandbox-Port": str(port),
        "E2B-Traffic-Access-Token": sandbox.traffic_access_token or "",
    }
    url = config.get_sandbox_url(sandbox.sandbox_id, sandbox.sandbox_domain)
    return httpx.AsyncClient(base_url=url, headers=headers, trust_env=False)


@pytest.fixture
async def server(sandbox: AsyncSandbox) -> AsyncIterator[httpx.AsyncClient]:
    """A client of `SERVER`, which runs in the sandbox."""
    port = 0
    started = anyio.Event()

    def on_stdout(text: str) -> None:
        nonlocal port
        port = int(text)
        started.set()

    await sandbox.files.write("server.py", SERVER)
    handle = await sandbox.commands.run(
        "python3 server.py", background=True, on_stdout=on_stdout, timeout=0
    )
    with anyio.fail_after(10):
        await started.wait()
    async with to_port(sandbox, port) as client:
        yield client
    await handle.kill()


async def test_a_request_reaches_a_server_in_the_sandbox_and_its_answer_comes_back(
    server: httpx.AsyncClient,
) -> None:
    answer = await server.post("/a%20b?c=d", content=b"x" * 3_000_000, headers={"x-mine": "1"})
    assert (answer.status_code, answer.headers["x-theirs"]) == (201, "yes")
    assert answer.text == "('/a%20b?c=d', '1', 3000000)"


async def test_a_chunked_answer_comes_back(server: httpx.AsyncClient) -> None:
    assert (await server.get("/whole")).text == "part0part1part2"


async def test_an_answer_that_is_cut_off_never_looks_complete(server: httpx.AsyncClient) -> None:
    with pytest.raises(httpx.RemoteProtocolError):
        await server.get("/cut")


@pytest.mark.parametrize("port", [9, 65536, 99999])
async def test_a_port_where_nobody_listens(sandbox: AsyncSandbox, port: int) -> None:
    async with to_port(sandbox, port) as client:
        answer = await client.get("/")
    assert answer.status_code == 502
    assert answer.json()["message"] == "The sandbox is running but port is not open"
    assert answer.json()["code"] == 502


async def test_the_sandbox_is_healthy(sandbox: AsyncSandbox) -> None:
    assert await sandbox.is_running()


async def test_the_variables_of_the_sandbox_reach_commands(e2b: E2B) -> None:
    sandbox = await e2b.AsyncSandbox.create(envs={"MINE": "from creation", "LANG": "C"})
    command = "echo $MINE $LANG"
    assert (await sandbox.commands.run(command)).stdout == "from creation C\n"
    result = await sandbox.commands.run(command, envs={"MINE": "from the call"})
    assert result.stdout == "from the call C\n"
    told = (await sandbox._envd_api.get("/envs")).json()
    assert told.items() >= {"MINE": "from creation", "LANG": "C"}.items()
    await sandbox.kill()


async def test_metrics_are_those_of_the_sandbox(sandbox: AsyncSandbox) -> None:
    metrics = (await sandbox._envd_api.get("/metrics")).json()
    assert metrics["cpu_count"] >= 1
    assert 0 < metrics["mem_used"] < metrics["mem_total"]
    assert 0 <= metrics["disk_used"] <= metrics["disk_total"]
