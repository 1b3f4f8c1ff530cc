"""Large output: all of it, or a notice of what was left out."""

from e2b_code_interpreter import AsyncSandbox

from rounds import rounds

SHOW = """
for number in range(20):
    print(f"{number:03}" * 333_333)
    display({"text/html": f"{number:03}" * 333_333}, raw=True)
"""
SIZE = "int(open('/proc/self/statm').read().split()[1]) // 256"  # MiB


async def test_a_long_line_arrives_whole(sandbox: AsyncSandbox) -> None:
    execution = await sandbox.run_code("print('x' * 20_000_000)")
    assert sum(map(len, execution.logs.stdout)) == 20_000_001


async def test_many_lines_arrive_in_order(sandbox: AsyncSandbox) -> None:
    execution = await sandbox.run_code("for i in range(50_000): print(i)")
    assert "".join(execution.logs.stdout) == "".join(f"{i}\n" for i in range(50_000))


THREADS = """
import threading
def count(name):
    for number in range(20_000): print(f"{name} {number} {'-' * 50}\\n", end="")
threads = [threading.Thread(target=count, args=(name,)) for name in "ab"]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""


async def test_what_threads_print_at_once_stays_in_order(sandbox: AsyncSandbox) -> None:
    lines = "".join((await sandbox.run_code(THREADS)).logs.stdout).splitlines()
    for name in "ab":
        numbers = [int(line.split()[1]) for line in lines if line.startswith(name)]
        assert numbers == list(range(20_000))


FORK = """
import os
print("before")
child = os.fork()
if child == 0:
    print("inside")
    os._exit(0)
os.waitpid(child, 0)
print("after")
"""


async def test_a_forked_process_prints_its_own_text_and_no_other(sandbox: AsyncSandbox) -> None:
    printed = "".join((await sandbox.run_code(FORK)).logs.stdout).split()
    assert sorted(printed) == ["after", "before", "inside"]


async def test_characters_of_several_bytes_arrive_whole(sandbox: AsyncSandbox) -> None:
    execution = await sandbox.run_code("print('a' + '\u20ac' * 1_000_000)")
    assert "".join(execution.logs.stdout) == "a" + "\u20ac" * 1_000_000 + "\n"


async def test_many_results_arrive(sandbox: AsyncSandbox) -> None:
    execution = await sandbox.run_code("for i in range(1500): display(i)")
    assert [result.text for result in execution.results] == [str(i) for i in range(1500)]


async def test_the_output_of_a_program_arrives_whole(sandbox: AsyncSandbox) -> None:
    """Also what it wrote last, which is in the pipe when the cell ends."""
    for _ in range(rounds(few=5, many=100)):
        execution = await sandbox.run_code("import os\nos.system('yes | head -c 4000000');")
        assert sum(map(len, execution.logs.stdout)) == 4_000_000


async def test_to_print_nothing_shows_nothing(sandbox: AsyncSandbox) -> None:
    execution = await sandbox.run_code("import sys\nprint(end='')\nsys.stderr.write('');")
    assert (execution.logs.stdout, execution.logs.stderr) == ([], [])


async def test_an_error_above_the_limit_is_an_error_all_the_same(sandbox: AsyncSandbox) -> None:
    execution = await sandbox.run_code("raise ValueError('x' * (65 << 20))")
    assert execution.error is not None
    assert "was left out: the limit is 64 MiB" in execution.error.value
    assert (await sandbox.run_code("1")).text == "1"


async def test_a_result_above_the_limit_is_named_instead_of_sent(sandbox: AsyncSandbox) -> None:
    execution = await sandbox.run_code("'x' * (65 << 20)")
    assert execution.results == []
    assert "".join(execution.logs.stderr) == (
        "[A result of 65 MiB was left out: the limit is 64 MiB. Write it to a file instead.]\n"
    )
    assert execution.error is None


async def test_what_was_shown_takes_no_memory(sandbox: AsyncSandbox) -> None:
    await sandbox.run_code(SHOW)
    before = (await sandbox.run_code(SIZE)).text
    for _ in range(2):
        await sandbox.run_code(SHOW)  # 40 MB
    after = (await sandbox.run_code(SIZE)).text

    assert int(after or 0) - int(before or 0) < 20
