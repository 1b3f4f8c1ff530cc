"""Starts a kernel: `python <this folder> <connection file>`.

The package is loaded under a name of its own, so that no module of the user (`guest`,
`startup`) is shadowed by it, and no folder of ours stays on `sys.path`.
"""

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

NAME = "e2b_startup"


def load() -> None:
    folder = Path(__file__).parent
    sys.path[:] = [entry for entry in sys.path if entry != str(folder)]
    spec = spec_from_file_location(
        NAME, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    if spec is None or spec.loader is None:
        raise ImportError(f"no loader for {folder}")
    package = module_from_spec(spec)
    sys.modules[NAME] = package
    spec.loader.exec_module(package)


if __name__ == "__main__":
    load()
    from e2b_startup.launch import main  # type: ignore[import-not-found]

    main(sys.argv[1])
