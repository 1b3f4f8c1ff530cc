"""The /etc of the boxes: written by us, with what they need of the host's copied in.

Nothing secret and nothing of the host's users: passwd and group know one user. The profile
leaves PATH alone, since E2B runs commands in login shells and PATH names the sandbox's own
Python first.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from ..folders import put_folder
from ..index import BOX_CERTIFICATES, BOX_CONSTRAINTS
from ..isolation import Bind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..index import PackageIndex

WRITTEN = {
    "passwd": (
        "root:x:0:0:root:/root:/bin/sh\n"
        "user:x:1000:1000:user:/home/user:/bin/bash\n"
        "nobody:x:65534:65534:nobody:/:/bin/false\n"
    ),
    "group": "root:x:0:\nuser:x:1000:\nnogroup:x:65534:\n",
    "hosts": "127.0.0.1 localhost sandbox\n::1 localhost\n",
    "hostname": "sandbox\n",
    "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
    "resolv.conf": "",
    "profile": "umask 022\n",
    "bash.bashrc": "",
}
# Tables without which programs do not start or know no names.
COPIED = ("ld.so.cache", "localtime", "mime.types", "protocols", "services")
# Shown as they are: /usr/bin points into the first, /usr's programs read the second.
SHOWN = ("alternatives", "fonts")


def prepare_etc(cache_dir: Path, index: PackageIndex) -> Path:
    return put_folder(cache_dir / "etc", lambda folder: _write(folder, index))


def etc_binds(folder: Path) -> Iterator[Bind]:
    yield Bind(folder, "/etc")
    for name in SHOWN:
        if (folder / name).is_dir():
            yield Bind(Path("/etc", name), f"/etc/{name}")


def has_certificates(folder: Path) -> bool:
    return _inside(folder, BOX_CERTIFICATES).exists()


def _write(folder: Path, index: PackageIndex) -> None:
    for name, text in WRITTEN.items():
        (folder / name).write_text(text)
    for name in COPIED:
        if (source := Path("/etc", name)).is_file():
            shutil.copyfile(source, folder / name)
    for name in SHOWN:
        if Path("/etc", name).is_dir():
            (folder / name).mkdir()
    if Path("/usr/lib/os-release").exists():
        os.symlink("../usr/lib/os-release", folder / "os-release")
    _write_index(folder, index)


def _write_index(folder: Path, index: PackageIndex) -> None:
    if bundle := index.certificate_bundle():
        place = _inside(folder, BOX_CERTIFICATES)
        place.parent.mkdir(parents=True)
        shutil.copyfile(bundle, place)
    if index.constraints:
        place = _inside(folder, BOX_CONSTRAINTS)
        place.parent.mkdir(parents=True)
        place.write_text("\n".join(path.read_text() for path in index.constraints))


def _inside(folder: Path, path_in_box: str) -> Path:
    return folder / Path(path_in_box).relative_to("/etc")
