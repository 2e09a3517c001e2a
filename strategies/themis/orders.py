"""How the stages of a competition stand, and what its organiser orders, as files of its run.

``stages.json`` says how it stands; the run alone writes it. What the organiser's commands order
lies beside it in ``orders.json``, so it does not matter which process runs the competition, or
whether one does at the moment.
"""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Literal

from pudica.models.clock import timestamp
from pudica.models.errors import RequestError, unknown_name_error
from pudica.models.files import write_atomically
from pudica.strategies.themis.config import STAGES

STATE, ORDERS = "stages.json", "orders.json"
What = Literal["open", "close"]
Times = dict[str, dict[str, str]]


def states(directory: Path) -> Times:
    """Return when each stage of a run was ``opened`` and ``closed``, as far as it was."""
    return read_times(directory / STATE)


def order(directory: Path, what: What, stage: str | None) -> str:
    """Tell a run to open or to close a stage; return which.

    Parameters
    ----------
    directory : Path
        Of the run.
    stage : str or None
        None: the next one to be opened, or the one that is open.

    Raises
    ------
    RequestError
        There is none, or it is open or closed already.
    """
    stand = states(directory)
    if stage is not None and stage not in STAGES:
        raise unknown_name_error("stage", stage, STAGES)
    opened = [name for name in STAGES if "opened" in stand.get(name, {})]
    closed = [name for name in STAGES if "closed" in stand.get(name, {})]
    if what == "open":
        allowed = [name for name in STAGES if name not in opened]
    else:
        allowed = [name for name in opened if name not in closed]
    chosen = stage or next(iter(allowed), None)
    if chosen not in allowed:
        told = ", ".join(f"{name} is {_stand(stand.get(name, {}))}" for name in STAGES)
        raise RequestError(f"{directory}: nothing to {what}: {told}")
    orders = read_times(directory / ORDERS)
    orders.setdefault(chosen, {})[what] = timestamp()
    write_atomically(directory / ORDERS, json.dumps(orders, indent=2).encode())
    return chosen


def said(when: datetime | str | None) -> str:
    """Return in words when a stage opens or closes."""
    if isinstance(when, datetime):
        return f"at {when.isoformat(timespec='minutes')}"
    return "on command" if when else "by itself"


def _stand(stage: dict[str, str]) -> str:
    if "closed" in stage:
        return "closed"
    return "open" if "opened" in stage else "not open yet"


def read_times(path: Path) -> Times:
    """Return times by stage, as a file has them; none if there is no file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
