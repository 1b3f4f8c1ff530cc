"""The layers of the package, as its files declare them: who may import whom, and which module is
the door of each third-party package. Read from the syntax tree, so lazy imports count too;
imports for type checkers alone do not.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = "e2b_agent_mcp"
SOURCE = Path(__file__).parent.parent / "src" / PACKAGE

# What a module (or a package of modules) may import of ours. `OPEN` ones are open to all
# outside the engine.
LAYERS = {
    "": {"server", "lifecycle", "agent", "pool"},
    "__main__": {"cli"},
    "cli": {
        *("server", "lifecycle", "connection", "rendering", "pool", "engine"),
        *("commands", "tasks", "demo", "doctor", "install"),
    },
    "commands": {"connection", "tasks", "agent", "rendering", "lifecycle", "pool", "costs"},
    "demo": {"lifecycle", "pool", "commands", "tasks", "agent", "examples"},
    "examples": set[str](),
    "doctor": {"connection", "lifecycle", "engine"},
    "install": set[str](),
    "server": {
        *("lifecycle", "connection", "rendering", "tasks", "agent", "pool", "costs", "examples"),
    },
    "connection": {"engine"},
    "tasks": {"lifecycle", "agent", "pool"},
    "agent": {"lifecycle", "pool", "connection"},  # for programs that have no server
    "rendering": {"lifecycle", "pool", "costs"},
    "lifecycle": {"pool", "connection", "costs"},
    "costs": {"pool"},
    "pool": set[str](),
    "settings": set[str](),
    "errors": set[str](),
    "database": set[str](),
    "owned_tasks": set[str](),
    "engine": set[str](),
}
OPEN = {"settings", "errors", "database", "owned_tasks"}

DOORS = {
    "mcp": {"server", "rendering"},
    "e2b": {"lifecycle", "errors"},
    "e2b_code_interpreter": {"lifecycle", "errors"},
    "httpx": {"errors", "lifecycle"},
    "smolagents": {"agent"},
    "litellm": {"agent"},
    "opentelemetry": {"lifecycle"},
    "rich": {"cli", "commands", "demo", "doctor"},
    "uvicorn": {"server", "engine"},
    "starlette": {"server", "engine"},
}

# The template's packages, which the guest and its kernels find inside a sandbox.
GUEST_PACKAGES = {
    *("anyio", "starlette", "uvicorn", "h11", "python_multipart", "multipart"),
    *("IPython", "ipykernel", "jupyter_client", "jupyter_core", "zmq", "traitlets", "pexpect"),
    *("matplotlib", "numpy", "pandas", "PIL", "sklearn", "seaborn", "plotly"),
    "e2b_charts",
    "e2b_startup",  # what the interpreter's `startup` package is called there
}


def modules() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


def host_modules() -> list[Path]:
    """Without what runs inside a sandbox: the guest and the parts of the demo."""
    return [path for path in modules() if not {"guest", "parts"} & set(path.parts)]


def name(path: Path) -> str:
    """`server` for server.py, `demo/parts` for demo/parts/one.py, "" for the package itself."""
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return "/".join(parts[:-1] if parts[-1] == "__init__" else parts)


def layer(path: Path) -> str:
    return name(path).partition("/")[0]


def imports(path: Path) -> Iterator[str]:
    """Absolute names of all modules that `path` imports at run time."""
    package = [PACKAGE, *path.relative_to(SOURCE).parent.parts]
    for node in runtime_nodes(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


def runtime_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those below `if TYPE_CHECKING:`."""
    yield node
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        return
    for child in ast.iter_child_nodes(node):
        yield from runtime_nodes(child)


def ours(module: str) -> str | None:
    """The layer that an imported name of ours belongs to; "" for the package's own names."""
    if module.partition(".")[0] != PACKAGE:
        return None
    first = module.split(".")[1] if "." in module else ""
    return first if (SOURCE / first).is_dir() or (SOURCE / f"{first}.py").is_file() else ""


@pytest.mark.parametrize("path", modules(), ids=name)
def test_a_module_imports_only_layers_below_it(path: Path) -> None:
    this = layer(path)
    open_layers = set() if this == "engine" else OPEN
    allowed = LAYERS[this] | open_layers | {this}
    reached = {found for module in imports(path) if (found := ours(module)) is not None}
    assert reached <= allowed, f"{path} imports {reached - allowed}"


@pytest.mark.parametrize("path", host_modules(), ids=name)
def test_a_third_party_package_is_imported_only_by_its_door(path: Path) -> None:
    for module in imports(path):
        doors = DOORS.get(module.partition(".")[0])
        assert doors is None or layer(path) in doors, f"{path} imports {module}"


@pytest.mark.parametrize("path", sorted((SOURCE / "engine" / "guest").rglob("*.py")), ids=name)
def test_the_guest_imports_nothing_that_its_sandbox_lacks(path: Path) -> None:
    guest = (f"{PACKAGE}.engine.guest", "guest.")  # the latter in a box
    for module in imports(path):
        top = module.partition(".")[0]
        inside = module.startswith(guest) or top in GUEST_PACKAGES or top in sys.stdlib_module_names
        assert inside, f"{path} imports {module}"


@pytest.mark.parametrize("path", sorted((SOURCE / "engine" / "guest").rglob("*.py")), ids=name)
def test_the_guest_imports_its_own_modules_relatively(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        named = node.module if isinstance(node, ast.ImportFrom) and not node.level else None
        assert not (named or "").startswith(PACKAGE), f"{path} imports {named}"


@pytest.mark.parametrize("path", host_modules(), ids=name)
def test_the_environment_is_read_in_few_places(path: Path) -> None:
    # smolagents and litellm read it on import, so `agent.libraries` changes it around that.
    if layer(path) in {"cli", "engine", "settings"} or name(path) == "agent/libraries":
        return
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Attribute) and node.attr in {"environ", "getenv"}:
            pytest.fail(f"{path}:{node.lineno} reads the environment")


@pytest.mark.parametrize("path", host_modules(), ids=name)
def test_only_the_commands_print(path: Path) -> None:
    if layer(path) == "cli" or path.name == "__main__.py":
        return
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "print":
            pytest.fail(f"{path}:{node.lineno} prints")
