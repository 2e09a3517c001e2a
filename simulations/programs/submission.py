"""One `flwr run`, from its start to its end."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from models.files import write_atomically
from simulations.programs.calling import CONNECTION, FLWR

POLL_SECONDS = 0.5
# After its ServerApp has failed, Flower still brings Ray up, to end it again; that is not
# waited for. In these seconds the traceback comes into the log where Ray is up already.
FAREWELL_SECONDS = 5.0
LOG_LINES = 15


class FlowerRunFailed(RuntimeError):
    """Flower did not complete a run; says why."""


class Submission:
    """One run of a bundle on a SuperLink.

    Parameters
    ----------
    start : callable
        Starts one of Flower's commands: ``start(log, *arguments, output=path or None)``.
    check : callable
        Raises where the SuperLink is not there any more.
    app : Path
        The bundle's folder.
    directory : Path
        Of the run. Flower's log is kept there as ``flower.log``.
    """

    def __init__(
        self,
        start: Callable[..., subprocess.Popen[bytes]],
        check: Callable[[], None],
        app: Path,
        directory: Path,
    ) -> None:
        self.app = app
        self.directory = directory
        self.log = directory / "flower.log"
        self._start = start
        self._check = check
        self._before = record(directory)
        self._submitted: subprocess.Popen[bytes] | None = None

    def run(self, *options: str) -> None:
        """Run to the end.

        Parameters
        ----------
        *options : str
            More arguments of ``flwr run``.

        Raises
        ------
        FlowerRunFailed
            If it does not complete.
        """
        self._stream(options)
        status = self._final_status()
        if status["status"] != "finished:completed":
            details = status["status-details"]
            reason = self.log_end() if details in ("", "N/A") else details
            raise FlowerRunFailed(f"{reason} (status {status['status']}; see {self.log})")

    def stop(self) -> None:
        """Stop the run on the SuperLink, whoever else still waits for it."""
        if self._submitted is not None:
            self._submitted.terminate()
            self._submitted.wait()
        found = self._listed()
        if not found["status"].startswith("finished"):
            self._start(self.log, *FLWR, "stop", found["run-id"], CONNECTION).wait()

    def log_end(self) -> str:
        """Return the last lines of Flower's log."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join([line for line in lines if line.strip()][-LOG_LINES:])

    def _own_reason(self) -> str:
        """Return why the ServerApp failed, by its own record of this run; else nothing."""
        now = record(self.directory)
        failed = now != self._before and now.get("status") == "failed"
        return str(now["reason"]) if failed else ""

    def _stream(self, options: tuple[str, ...]) -> None:
        """Submit the run, and keep its log until it ends."""
        command = ("run", str(self.app), CONNECTION, "--stream")
        submitted = self._submitted = self._start(self.log, *FLWR, *command, *options)
        while submitted.poll() is None and not self._own_reason():
            self._check()
            with suppress(subprocess.TimeoutExpired):
                submitted.wait(POLL_SECONDS)
        if reason := self._own_reason():
            with suppress(subprocess.TimeoutExpired):
                submitted.wait(FAREWELL_SECONDS)
            raise FlowerRunFailed(reason)
        if submitted.returncode:
            raise FlowerRunFailed(f"`flwr run` failed:\n{self.log_end()}")

    def _final_status(self) -> dict[str, str]:
        """Return the run as the SuperLink sees it; `flwr run --stream` ends well in any case."""
        while True:
            self._check()
            found = self._listed()
            if found["status"].startswith("finished"):
                return found
            time.sleep(POLL_SECONDS)

    def _listed(self) -> dict[str, str]:
        """Return what `flwr ls` says of the SuperLink's newest run, which is this one."""
        listing = self.app.parent / "runs.json"
        listing.unlink(missing_ok=True)
        command = ("ls", CONNECTION, "--format", "json")
        code = self._start(self.log, *FLWR, *command, output=listing).wait()
        text = listing.read_text(encoding="utf-8")
        if code or not (runs := json.loads(text).get("runs")):
            raise FlowerRunFailed(f"`flwr ls` failed: {text}\n{self.log_end()}")
        return runs[0]  # type: ignore[no-any-return]


def record(directory: Path) -> dict[str, Any]:
    """Return the run's ``run.json``, empty if there is none yet."""
    path = directory / "run.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def close_record(directory: Path, status: str, reason: str) -> None:
    """Say how the run ended where its ServerApp can't any more."""
    ended = record(directory)
    if ended.get("status") == "running":
        now = datetime.now(UTC).isoformat(timespec="seconds")
        ended |= {"status": status, "reason": reason, "ended": now}
        write_atomically(directory / "run.json", json.dumps(ended, indent=2).encode())
