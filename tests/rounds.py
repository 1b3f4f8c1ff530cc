"""How often a randomised test repeats: a few rounds with every run, many when asked for.

LONG_TESTS=1 python -m pytest tests/engine/test_zygote.py
"""

import os


def rounds(few: int, many: int) -> int:
    return many if os.environ.get("LONG_TESTS") else few
