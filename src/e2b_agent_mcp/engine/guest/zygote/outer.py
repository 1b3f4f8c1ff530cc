"""First program of the outer box: starts the zygote and waits for the engine to go.

It runs isolated (`-I -S`) and ends as `cat`: a zygote that dies takes no box with it, while the
end of stdin, whose other end only the engine holds, ends the outer box and all in it.
"""

import os
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent

sys.path.append(str(FOLDER.parent.parent))

from guest.config import GuestConfig  # type: ignore[import-not-found]  # noqa: E402
from guest.home import prepare_home  # type: ignore[import-not-found]  # noqa: E402


def main(control: int) -> None:
    config = GuestConfig()
    prepare_home(config)  # the outer box has one like every sandbox, so that paths are the same
    if os.fork() == 0:
        os.execv(config.python, [config.python, FOLDER, str(control)])  # noqa: S606
    os.close(control)
    os.execv("/bin/cat", ["cat"])  # noqa: S606


if __name__ == "__main__":
    main(int(sys.argv[1]))
