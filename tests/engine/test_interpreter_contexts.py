"""Contexts: separate namespaces in one sandbox."""

import anyio
import pytest
from e2b import NotFoundException, SandboxException
from e2b_code_interpreter import AsyncSandbox


async def test_a_context_has_a_namespace_and_a_folder_of_its_own(sandbox: AsyncSandbox) -> None:
    context = await sandbox.create_code_context(cwd="/tmp", language="python")
    assert (context.cwd, context.language) == ("/tmp", "python")
    await sandbox.run_code("x = 1", context=context)
    assert (await sandbox.run_code("import os; x, os.getcwd()", context=context)).text == (
        "(1, '/tmp')"
    )
    assert (await sandbox.run_code("'x' in globals()")).text == "False"


async def test_contexts_run_side_by_side(sandbox: AsyncSandbox) -> None:
    other = await sandbox.create_code_context()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(
            sandbox.run_code, "import os, time\nwhile not os.path.exists('go'): time.sleep(.01)"
        )
        await sandbox.run_code("open('go', 'w').close()", context=other)


async def test_the_default_context_is_listed_before_it_was_used(sandbox: AsyncSandbox) -> None:
    contexts = await sandbox.list_code_contexts()
    assert ("python", "/home/user") in [(c.language, c.cwd) for c in contexts]


async def test_a_new_context_is_listed_until_it_is_removed(sandbox: AsyncSandbox) -> None:
    before = {context.id for context in await sandbox.list_code_contexts()}
    context = await sandbox.create_code_context()
    assert {c.id for c in await sandbox.list_code_contexts()} == before | {context.id}
    await sandbox.remove_code_context(context)
    assert {c.id for c in await sandbox.list_code_contexts()} == before
    with pytest.raises(NotFoundException):
        await sandbox.run_code("1", context=context)
    with pytest.raises(NotFoundException):
        await sandbox.remove_code_context(context)
    with pytest.raises(NotFoundException):
        await sandbox.restart_code_context(context)


async def test_the_default_context_comes_back_after_its_removal(sandbox: AsyncSandbox) -> None:
    await sandbox.run_code("x = 1")
    for context in await sandbox.list_code_contexts():
        await sandbox.remove_code_context(context)
    assert (await sandbox.run_code("'x' in globals()")).text == "False"


async def test_a_restarted_context_keeps_its_id_and_loses_its_variables(
    sandbox: AsyncSandbox,
) -> None:
    context = await sandbox.create_code_context()
    await sandbox.run_code("x = 1", context=context)
    await sandbox.restart_code_context(context)
    assert (await sandbox.run_code("'x' in globals()", context=context)).text == "False"


async def test_a_missing_folder_is_refused(sandbox: AsyncSandbox) -> None:
    with pytest.raises(SandboxException, match="cwd '/nope' does not exist"):
        await sandbox.create_code_context(cwd="/nope")


async def test_a_missing_language_is_refused_with_what_there_is(sandbox: AsyncSandbox) -> None:
    with pytest.raises(SandboxException, match=r"'cobol' is not available.*Available: python"):
        await sandbox.run_code("1", language="cobol")
    with pytest.raises(SandboxException, match="'cobol' is not available"):
        await sandbox.create_code_context(language="cobol")


@pytest.mark.parametrize("name", ["python", "Python", "py"])
async def test_python_has_names(sandbox: AsyncSandbox, name: str) -> None:
    assert (await sandbox.run_code("1", language=name)).text == "1"


@pytest.mark.parametrize("put", ["os.mkdir(log)", "os.mkfifo(log)"])
async def test_what_code_puts_in_place_of_a_log_holds_nothing_up(
    sandbox: AsyncSandbox, put: str
) -> None:
    context = await sandbox.create_code_context()
    logs = "for log in glob.glob('/tmp/kernel-*/log'):"
    code = f"import glob, os\n{logs}\n    os.unlink(log)\n    {put}"
    assert (await sandbox.run_code(code, context=context)).error is None
    with anyio.fail_after(20):
        await sandbox.restart_code_context(context)
        assert (await sandbox.run_code("1 + 1", context=context)).text == "2"


async def test_a_context_that_is_ended_by_a_signal_without_a_name_says_which(
    sandbox: AsyncSandbox,
) -> None:
    run = await sandbox.run_code("import os; os.kill(os.getpid(), 40)")
    assert run.error is not None
    assert "signal 40" in run.error.value
    assert (await sandbox.run_code("1 + 1")).text == "2"
