"""What a step has put into variables: for a model whose code shows nothing else. Pure.

A small model that assigns its result and prints nothing writes the same assignment again and again;
a larger one spends a step on printing what it has.
"""

import ast
import re
from collections.abc import Iterator

SHOW = "_agent_shows"  # in the session's interpreter; `inside/prelude.py` puts it there
MOST_VARIABLES = 5  # the newest

_ADDED = re.compile(rf"^.*if '{SHOW}' in globals\(\): {SHOW}\(.*\n?", re.MULTILINE)


def showing_variables(code: str) -> str:
    """The code, and a line that tells of the variables that it sets.

    Code that is no plain Python, or ends with an expression, which shows itself, stays as it is.
    """
    try:
        statements = ast.parse(code).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return code
    if not statements or isinstance(statements[-1], ast.Expr):
        return code
    names = [name for statement in statements for name in _set_by(statement)]
    newest = tuple(dict.fromkeys(reversed(names)))[:MOST_VARIABLES][::-1]
    # Code can delete every name, and this one with them.
    return f"{code}\nif {SHOW!r} in globals(): {SHOW}{newest!r}" if newest else code


def without_added(traceback: str) -> str:
    """A traceback shows what follows the line that failed, too."""
    return _ADDED.sub("", traceback)


def _set_by(statement: ast.stmt) -> Iterator[str]:
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return
    for node in ast.walk(statement):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
