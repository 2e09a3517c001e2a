"""Processes of their own, forked from the test's: they need not import everything again."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable

SECONDS = 100


def fork(
    work: Callable[[], object],
    output: int | None = None,
    errors: int | None = None,
    session: bool = False,
) -> int:
    """Do the work in a child, and return its process id.

    Parameters
    ----------
    output, errors : int, optional
        Descriptors to which it prints.
    session : bool
        Whether it is the first of a process group of its own, as a command in a terminal is.
    """
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        signal.alarm(SECONDS)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if session:
            os.setsid()
        for descriptor, place in ((output, 1), (errors, 2)):
            if descriptor is not None:
                os.dup2(descriptor, place)
        sys.stdout, sys.stderr = (os.fdopen(place, "w", closefd=False) for place in (1, 2))
        work()
        status = 0
    except SystemExit as end:
        status = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def wait_for(child: int) -> int:
    """Return a child's exit status when it is over; less than 0: by which signal it ended."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
