"""Languages beside Python."""

from collections.abc import AsyncIterator

import pytest
from e2b_code_interpreter import E2B, AsyncSandbox


@pytest.fixture(scope="module")
async def polyglot(e2b: E2B) -> AsyncIterator[AsyncSandbox]:
    sandbox = await e2b.AsyncSandbox.create(timeout=120)
    yield sandbox
    await sandbox.kill()


async def test_bash(polyglot: AsyncSandbox) -> None:
    await polyglot.run_code("X=4; cd /tmp", language="bash")
    execution = await polyglot.run_code(
        "echo $X $TOKEN; pwd", language="bash", envs={"TOKEN": "a'"}
    )
    assert "".join(execution.logs.stdout) == "4 a'\n/tmp\n"
    assert (await polyglot.run_code("echo [$TOKEN]", language="bash")).logs.stdout == ["[]\n"]


@pytest.mark.parametrize(
    ("language", "code"),
    [
        pytest.param("js", "const x = 20; console.log('hi'); x + 1", id="javascript"),
        pytest.param("ts", "const x: number = 20; console.log('hi'); x + 1", id="typescript"),
    ],
)
async def test_deno(polyglot: AsyncSandbox, language: str, code: str) -> None:
    execution = await polyglot.run_code(code, language=language)
    assert execution.text == "21"
    assert "".join(execution.logs.stdout) == "hi\n"


@pytest.mark.parametrize("language", ["js", "ts"])
async def test_programs_for_node_find_what_they_expect(
    polyglot: AsyncSandbox, language: str
) -> None:
    await polyglot.files.write("twice.js", "exports.twice = x => 2 * x")
    code = """
process.stdout.write('out ')
process.stdout.write(Buffer.from('ü'), () => process.stderr.write('err'))
require('./twice.js').twice(require('path').join('2', '1').length)
"""
    execution = await polyglot.run_code(code, language=language)
    assert execution.text == "6"
    assert "".join(execution.logs.stdout) == "out ü"
    assert "".join(execution.logs.stderr) == "err"


@pytest.mark.parametrize("language", ["js", "ts"])
async def test_wrong_syntax_is_told(polyglot: AsyncSandbox, language: str) -> None:
    execution = await polyglot.run_code("let fine = 1\nconst = 2", language=language)
    assert execution.error is not None
    assert execution.error.name == "SyntaxError"
    assert execution.error.value.startswith("Unexpected token `=`")
    assert "2 | const = 2" in execution.error.traceback
    assert execution.error.traceback.endswith("at 2:7")


async def test_a_new_javascript_context_counts_from_one(polyglot: AsyncSandbox) -> None:
    context = await polyglot.create_code_context(language="js")
    assert (await polyglot.run_code("1", context=context)).execution_count == 1


async def test_javascript_errors_and_variables(polyglot: AsyncSandbox) -> None:
    execution = await polyglot.run_code("throw new Error('boom')", language="js")
    assert execution.error is not None
    assert (execution.error.name, execution.error.value) == ("Error", "boom")
    code = "Deno.env.get('TOKEN')"
    given = await polyglot.run_code(code, language="js", envs={"TOKEN": "a"})
    assert given.text == "a"
    assert (await polyglot.run_code(code, language="js")).text is None


async def test_the_languages_have_contexts_of_their_own(polyglot: AsyncSandbox) -> None:
    await polyglot.run_code("1", language="js")
    languages = [context.language for context in await polyglot.list_code_contexts()]
    assert {"python", "javascript"} <= set(languages)
