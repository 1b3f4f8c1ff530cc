"""The code that guests and kernels run is laid side by side in memory, so that boxes share more.

To call a function writes to its code (how many hold it, how often it ran): each box copies the
page of memory that the code is in. Where modules leave it, hardly two functions that a box calls
are on one page. A forked child finds out which ones are called; addresses are the same in both.
"""

import gc
import os
import signal
import sys
import threading
import traceback
from array import array
from collections.abc import Callable
from types import CodeType, FrameType, FunctionType

MOST = 10  # seconds for a child; usually less than one

# Code that was copied stays: each box would fill the gaps, and copy the memory around them.
_left: list[CodeType] = []


def gather(*rehearsals: Callable[[], object]) -> None:
    """Before functions are warmed up: a copy is cold."""
    used: set[int] = set()
    for rehearsal in rehearsals:
        used |= _used_by(rehearsal)
    copies: dict[int, CodeType] = {}
    for function in gc.get_objects():
        if type(function) is FunctionType:
            code = _copied(function.__code__, used, copies)
            if code is not function.__code__:
                function.__code__ = code


def _copied(code: CodeType, used: set[int], copies: dict[int, CodeType]) -> CodeType:
    """The code itself when neither it nor any inside of it is used."""
    if id(code) not in copies:
        inner = [
            _copied(value, used, copies) if type(value) is CodeType else value
            for value in code.co_consts
        ]
        copies[id(code)] = code
        if id(code) in used or any(a is not b for a, b in zip(inner, code.co_consts, strict=True)):
            copies[id(code)] = code.replace(co_consts=tuple(inner))
            _left.append(code)
    return copies[id(code)]


def _used_by(rehearsal: Callable[[], object]) -> set[int]:
    """Addresses of code; none when the rehearsal failed, which is a matter of memory alone."""
    output, input_end = os.pipe()
    child = os.fork()
    if child == 0:
        _report(rehearsal, input_end)
    os.close(input_end)
    with open(output, "rb") as report:
        addresses = array("Q", report.read())
    os.waitpid(child, 0)
    return set(addresses)


def _report(rehearsal: Callable[[], object], pipe: int) -> None:
    """Ends the process."""
    used: set[int] = set()

    def note(frame: FrameType, event: str, _: object) -> None:
        if event == "call":
            used.add(id(frame.f_code))

    try:
        signal.alarm(MOST)
        threading.setprofile(note)
        sys.setprofile(note)
        rehearsal()
        sys.setprofile(None)
        with open(pipe, "wb") as report:
            report.write(array("Q", list(used)).tobytes())
    except BaseException:
        traceback.print_exc(file=sys.__stderr__)
    finally:
        os._exit(0)
