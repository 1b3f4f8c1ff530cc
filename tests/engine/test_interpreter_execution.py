"""What `run_code` does with code: output, errors, variables, order."""

import anyio
import pytest
from e2b_code_interpreter import AsyncSandbox, OutputMessage, Result


async def test_the_last_expression_is_the_main_result(sandbox: AsyncSandbox) -> None:
    execution = await sandbox.run_code("x = 20\nx + 1")
    assert execution.text == "21"
    assert [result.is_main_result for result in execution.results] == [True]
    assert execution.error is None


async def test_variables_survive_and_executions_are_counted(sandbox: AsyncSandbox) -> None:
    first = await sandbox.run_code("x = 5")
    second = await sandbox.run_code("x")
    assert second.text == "5"
    assert (first.execution_count, second.execution_count) == (1, 2)


@pytest.mark.parametrize(
    ("code", "stdout", "stderr"),
    [
        pytest.param("print('a'); print('b')", "a\nb\n", "", id="print"),
        pytest.param("import sys; print('e', file=sys.stderr)", "", "e\n", id="stderr"),
        pytest.param("import os; os.system('echo sys');", "sys\n", "", id="os.system"),
        pytest.param("!echo shell", "shell\r\n", "", id="shell escape"),
        pytest.param("!printf '\\303'; sleep .1; printf '\\251'", "é", "", id="half a character"),
        pytest.param("!test -t 1 && stty size", "24 80\r\n", "", id="terminal"),
        pytest.param("said = !echo a; echo b >&2\nprint(said)", "['a', 'b']\n", "", id="kept"),
        pytest.param("!exit 3\nprint(_exit_code)", "3\n", "", id="status"),
        pytest.param("!kill -9 $$\nprint(_exit_code)", "-9\n", "", id="signal"),
        pytest.param("!(kill -9 $BASHPID)\nprint(_exit_code)", "-9\n", "", id="passed on"),
        pytest.param("print('a\\u2028b\\x85c')", "a\u2028b\x85c\n", "", id="line separators"),
        pytest.param("print('\\ud800')", "?\n", "", id="lone surrogate"),
        pytest.param("len?", "Return the number of items", "", id="help"),
    ],
)
async def test_what_is_written_arrives(
    sandbox: AsyncSandbox, code: str, stdout: str, stderr: str
) -> None:
    execution = await sandbox.run_code(code)
    assert stdout in "".join(execution.logs.stdout)
    assert "".join(execution.logs.stderr) == stderr
    assert execution.error is None


async def test_output_arrives_while_the_code_runs(sandbox: AsyncSandbox) -> None:
    first = anyio.Event()

    async def let_it_end() -> None:
        await first.wait()
        await sandbox.files.write("go", "")

    def note(message: OutputMessage) -> None:
        assert message.line == "first\n"
        assert message.timestamp
        first.set()

    code = "import os, time\nprint('first')\nwhile not os.path.exists('go'): time.sleep(.01)"
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(let_it_end)
            await sandbox.run_code(code, on_stdout=note)


async def test_callbacks_see_events_in_order(sandbox: AsyncSandbox) -> None:
    seen: list[str] = []

    def on_stdout(message: OutputMessage) -> None:
        seen.append(message.line)

    def on_result(result: Result) -> None:
        seen.append(str(result.text))

    await sandbox.run_code(
        "print('a'); display(1); print('b'); 2", on_stdout=on_stdout, on_result=on_result
    )
    assert seen == ["a\n", "1", "b\n", "2"]


async def test_a_failing_cell_says_so_once_and_without_colours(sandbox: AsyncSandbox) -> None:
    errors: list[str] = []
    execution = await sandbox.run_code("1/0", on_error=lambda error: errors.append(error.name))
    assert execution.error is not None
    assert errors == [execution.error.name] == ["ZeroDivisionError"]
    assert execution.error.value == "division by zero"
    assert "----> 1 1/0" in execution.error.traceback
    assert "\x1b" not in execution.error.traceback


@pytest.mark.parametrize(
    ("code", "name"),
    [
        pytest.param("x = = 1", "SyntaxError", id="syntax"),
        pytest.param("import sys; sys.exit(3)", "SystemExit", id="exit"),
        pytest.param("input('name? ')", "StdinNotImplementedError", id="input"),
        pytest.param("raise KeyboardInterrupt", "KeyboardInterrupt", id="interrupt"),
    ],
)
async def test_an_error_is_data_and_the_context_goes_on(
    sandbox: AsyncSandbox, code: str, name: str
) -> None:
    execution = await sandbox.run_code(code)
    assert execution.error is not None
    assert execution.error.name == name
    assert (await sandbox.run_code("1")).text == "1"


async def test_request_variables_last_for_one_execution(sandbox: AsyncSandbox) -> None:
    code = "import os; os.environ.get('TOKEN'), os.environ['HOME']"
    given = {"TOKEN": 'it\'s "1"\n', "HOME": "/tmp"}
    assert (await sandbox.run_code(code, envs=given)).text == "('it\\'s \"1\"\\n', '/tmp')"
    assert (await sandbox.run_code(code)).text == "(None, '/home/user')"


async def test_setting_variables_leaves_no_trace_in_the_namespace(sandbox: AsyncSandbox) -> None:
    execution = await sandbox.run_code("'os' in globals(), len(In)", envs={"A": "1"})
    assert execution.text == "(False, 2)"
    assert execution.execution_count == 1


async def test_concurrent_executions_run_one_after_another_in_order(
    sandbox: AsyncSandbox,
) -> None:
    await sandbox.run_code("seen = []; import time")
    async with anyio.create_task_group() as tasks:
        for number in range(4):
            code = f"seen.append({number}); time.sleep(.05); seen.append({number})"
            tasks.start_soon(sandbox.run_code, code)
    seen = (await sandbox.run_code("seen[::2] == seen[1::2] and len(seen)")).text
    assert seen == "8"


async def test_top_level_await_works(sandbox: AsyncSandbox) -> None:
    assert (await sandbox.run_code("import asyncio\nawait asyncio.sleep(0, 7)")).text == "7"


async def test_a_thread_of_an_earlier_cell_prints_into_the_one_that_runs(
    sandbox: AsyncSandbox,
) -> None:
    await sandbox.run_code(
        "import threading\n"
        "go = threading.Event()\n"
        "thread = threading.Thread(target=lambda: (go.wait(), print('from behind')))\n"
        "thread.start()"
    )
    execution = await sandbox.run_code("go.set(); thread.join()")
    assert "".join(execution.logs.stdout) == "from behind\n"


async def test_modules_in_the_working_folder_can_be_imported(sandbox: AsyncSandbox) -> None:
    await sandbox.files.write("/home/user/mine.py", "VALUE = 3")
    assert (await sandbox.run_code("import mine; mine.VALUE")).text == "3"


async def test_processes_of_a_pool_work(sandbox: AsyncSandbox) -> None:
    execution = await sandbox.run_code(
        "from concurrent.futures import ProcessPoolExecutor\n"
        "with ProcessPoolExecutor(2) as pool: squares = list(pool.map(abs, [-1, -2]))\n"
        "squares"
    )
    assert execution.text == "[1, 2]"
