"""What sandboxes stand on: a way to isolate them, a package index, a way out, a template.

Found anew by every process that needs it; only the template is built once and kept.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from .egress import Upstream, read_upstream
from .index import PackageIndex, read_package_index
from .isolation import Isolation, probe
from .template import Template, ensure_template

if TYPE_CHECKING:
    from collections.abc import Callable

    from .options import EngineOptions


class Host(NamedTuple):
    isolation: Isolation
    package_index: PackageIndex
    upstream: Upstream
    template: Template


async def prepare_host(options: EngineOptions, on_progress: Callable[[str], None]) -> Host:
    """Builds the template if this user has none: minutes the first time, then milliseconds."""
    isolation = await probe(
        cache_dir=options.cache_dir, bubblewrap=options.bubblewrap, choice=options.isolation
    )
    index = read_package_index(os.environ, Path(sys.prefix))
    template = await ensure_template(
        cache_dir=options.cache_dir,
        isolation=isolation,
        index=index,
        environ=os.environ,
        on_progress=on_progress,
    )
    return Host(isolation, index, read_upstream(os.environ), template)
