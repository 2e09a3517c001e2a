"""The state of a competition's stages, and its organiser's orders, as files of its run.

Only the run writes ``stages.json``. Orders lie beside it in ``orders.json``, so it does not
matter which process runs the competition, or whether one does at the moment.
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
Action = Literal["open", "close"]
Times = dict[str, dict[str, str]]


def read_stages(directory: Path) -> Times:
    """Return when each stage of a run was ``opened`` and ``closed``, if it was."""
    return read_times(directory / STATE)


def give_order(directory: Path, action: Action, stage: str | None) -> str:
    """Order a run to open or to close a stage; return which.

    Parameters
    ----------
    directory : Path
        Of the run.
    stage : str or None
        None: the next one to open, or the one that is open.

    Raises
    ------
    RequestError
        There is none, or it is open or closed already.
    """
    if stage is not None and stage not in STAGES:
        raise unknown_name_error("stage", stage, STAGES)
    times = read_stages(directory)
    status = {name: _describe_status(times.get(name, {})) for name in STAGES}
    wanted = "not open yet" if action == "open" else "open"
    allowed = [name for name in STAGES if status[name] == wanted]
    chosen = stage or next(iter(allowed), None)
    if chosen not in allowed:
        now = ", ".join(f"{name} is {status[name]}" for name in STAGES)
        raise RequestError(f"{directory}: nothing to {action}: {now}")
    orders = read_times(directory / ORDERS)
    orders.setdefault(chosen, {})[action] = timestamp()
    write_atomically(directory / ORDERS, json.dumps(orders, indent=2).encode())
    return chosen


def describe_time(when: datetime | str | None) -> str:
    """Return when a stage opens or closes, in words."""
    if isinstance(when, datetime):
        return f"at {when.isoformat(timespec='minutes')}"
    return "on command" if when else "by itself"


def _describe_status(stage: dict[str, str]) -> str:
    if "closed" in stage:
        return "closed"
    return "open" if "opened" in stage else "not open yet"


def read_times(path: Path) -> Times:
    """Return the times by stage in a file; none if there is no file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
