"""The zygote: `<home>/.venv/bin/python <this folder> <control socket>`.

It imports in two steps: first what a kernel has, from where a kernel finds it; then what only the
guest has, which a forked kernel is to see nothing of.
"""

import os
import runpy
import sys
from importlib import import_module
from pathlib import Path

HERE = Path(__file__).resolve().parent
GUEST = HERE.parent
ROOT = GUEST.parent

# What a guest imports only when it serves.
SERVING = (
    "anyio._backends._asyncio",
    "anyio.streams.memory",
    "encodings.idna",
    "uvicorn.lifespan.on",
    "uvicorn.loops.asyncio",
    "uvicorn.protocols.http.h11_impl",
    "zmq.asyncio",
)


def main(control: int) -> None:
    sys.path.remove(str(HERE))
    runpy.run_path(str(GUEST / "interpreter/startup/__main__.py"))["load"]()
    from e2b_startup import preload  # type: ignore[import-not-found]

    before = dict(os.environ)
    preload.preload()
    variables = {name: value for name, value in os.environ.items() if name not in before}
    modules = frozenset(sys.modules)
    sys.path += [str(ROOT), str(ROOT / "lib")]
    from guest.zygote import (  # type: ignore[import-not-found]
        gathering,
        nursery,
        rehearsal,
        server,
    )

    for name in SERVING:
        import_module(name)
    gathering.gather(preload.rehearse_a_kernel, rehearsal.rehearse_once)
    rehearsal.rehearse()
    server.serve(control, nursery.Imports.since(modules, variables), nursery.Unborn())


if __name__ == "__main__":
    main(int(sys.argv[1]))
