"""What `pip` sees and does in a sandbox. `iniconfig` stands for any small package."""

from e2b_code_interpreter import AsyncSandbox


async def test_an_installed_package_can_be_imported_at_once(sandbox: AsyncSandbox) -> None:
    installed = await sandbox.commands.run("pip install --quiet iniconfig", timeout=60)
    assert installed.exit_code == 0
    where = (await sandbox.run_code("import iniconfig; iniconfig.__file__")).text
    assert where is not None
    assert where.startswith("/home/user/.venv/")


async def test_the_template_counts_as_installed_and_stays_untouched(
    sandbox: AsyncSandbox,
) -> None:
    kept = await sandbox.commands.run("pip install numpy && pip uninstall -y numpy")
    assert "already satisfied" in kept.stdout
    assert "outside environment /home/user/.venv" in kept.stdout + kept.stderr
    assert (await sandbox.run_code("import numpy; numpy.ones(1)")).error is None


async def test_a_program_and_a_context_run_the_same_python(sandbox: AsyncSandbox) -> None:
    program = await sandbox.commands.run("python -c 'import sys; print(sys.executable)'")
    assert program.stdout.strip() == "/home/user/.venv/bin/python"
    context = await sandbox.run_code("import sys; print(sys.executable)")
    assert context.logs.stdout == [program.stdout]
