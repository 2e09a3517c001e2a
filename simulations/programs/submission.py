"""A single `flwr run`, from submission to its final status."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pudica.models.clock import timestamp
from pudica.models.errors import RequestError
from pudica.models.files import write_atomically
from pudica.models.printable import remove_colours
from pudica.simulations.programs.calling import CONNECTION, FLWR
from pudica.strategies.core.recorder import lock

POLL_SECONDS = 0.5
# After its ServerApp has failed, Flower still starts Ray only to stop it again; we do not wait for
# that. If Ray is up already, the traceback reaches the log within this time.
TRACEBACK_SECONDS = 5.0
LOG_LINES = 15
UNLOCK_SECONDS = 60.0
# Status in the record of a run whose ServerApp was killed, or ended along with its server.
UNEXPLAINED = ("running", "interrupted")
KILLED = "No heartbeat received"
STARTED = re.compile(r"started run (\d+)")

Start = Callable[..., "subprocess.Popen[bytes]"]


class FlowerRunFailed(RuntimeError):
    """Flower did not complete a run; the message says why."""


class FlowerRun:
    """Submits a bundle to a SuperLink and waits for the run to end.

    Parameters
    ----------
    start : callable
        Starts one of Flower's commands: ``start(log, *arguments, output=path or None)``.
    check : callable
        Raises if the SuperLink is gone.
    app, directory : Path
        Of the bundle, and of the run. Flower's log is written to the latter as ``flower.log``.
    """

    def __init__(self, start: Start, check: Callable[[], None], app: Path, directory: Path) -> None:
        self.app = app
        self.directory = directory
        self.log = directory / "flower.log"
        self._start = start
        self._check = check
        self._before = read_run_record(directory)
        self._submitted: subprocess.Popen[bytes] | None = None

    def run(self, *options: str) -> None:
        """Submit the run, with further arguments of ``flwr run``, and wait until it has ended.

        Raises
        ------
        FlowerRunFailed
            If it does not complete.
        """
        self._stop_previous_run()
        self._submit_and_wait(options)
        status = self._wait_for_final_status()
        if status["status"] != "finished:completed":
            details = status["status-details"]
            reason = self.read_log_tail() if details in ("", "N/A") else details
            if reason.startswith(KILLED):
                reason = (
                    "the run's ServerApp ended without a word: it was killed, or ran out of memory"
                )
            raise FlowerRunFailed(f"{reason} (status {status['status']}; see {self.log})")

    def stop(self) -> None:
        """Stop the run on the SuperLink, even if somebody else still waits for it."""
        if self._submitted is not None:
            self._submitted.terminate()
            self._submitted.wait()
        self._stop_unless_finished(self._query_latest_run())

    def read_log_tail(self) -> str:
        """Return the last lines of Flower's log."""
        text = self.log.read_text(encoding="utf-8", errors="replace")
        lines = remove_colours(text).splitlines()
        return "\n".join([line for line in lines if line.strip()][-LOG_LINES:])

    def _stop_previous_run(self) -> None:
        """Stop the run that this one resumes, if Flower still lists it.

        A restarted server believes that a run whose ServerApp is gone is still running, and passes
        its last messages on to the nodes.
        """
        text = self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""
        if not (previous := STARTED.findall(text)):
            return
        for run in query_flower(self._start, self.log, "ls", CONNECTION).get("runs", []):
            if run["run-id"] in previous:
                self._stop_unless_finished(run)

    def _stop_unless_finished(self, run: dict[str, str]) -> None:
        if not run["status"].startswith("finished"):
            self._start(self.log, *FLWR, "stop", run["run-id"], CONNECTION).wait()

    def _read_failure_reason(self) -> str:
        """Return why the ServerApp failed according to its record of this run, or ""."""
        now = read_run_record(self.directory)
        failed = now != self._before and now.get("status") == "failed"
        return str(now["reason"]) if failed else ""

    def _submit_and_wait(self, options: tuple[str, ...]) -> None:
        """Submit the run and write its log until it ends."""
        command = ("run", str(self.app), CONNECTION, "--stream")
        submitted = self._submitted = self._start(self.log, *FLWR, *command, *options)
        try:
            while submitted.poll() is None and not self._read_failure_reason():
                self._check()
                with suppress(subprocess.TimeoutExpired):
                    submitted.wait(POLL_SECONDS)
        except FlowerRunFailed:
            submitted.terminate()
            raise
        if reason := self._read_failure_reason():
            with suppress(subprocess.TimeoutExpired):
                submitted.wait(TRACEBACK_SECONDS)
            raise FlowerRunFailed(reason)
        self._check()
        if submitted.returncode:
            raise FlowerRunFailed(f"`flwr run` failed:\n{self.read_log_tail()}")

    def _wait_for_final_status(self) -> dict[str, str]:
        """Return the run's final entry; `flwr run --stream` succeeds however the run ended."""
        while True:
            self._check()
            run = self._query_latest_run()
            if run["status"].startswith("finished"):
                return run
            time.sleep(POLL_SECONDS)

    def _query_latest_run(self) -> dict[str, str]:
        """Return the entry of the SuperLink's newest run, which is this one, from `flwr ls`."""
        answer = query_flower(self._start, self.log, "ls", CONNECTION)
        if not answer.get("runs"):
            raise FlowerRunFailed(f"`flwr ls` failed: {answer}\n{self.read_log_tail()}")
        return answer["runs"][0]  # type: ignore[no-any-return]


def query_flower(start: Start, log: Path, *arguments: str) -> dict[str, Any]:
    """Run one of Flower's commands and return its JSON; other output goes to the log."""
    with TemporaryDirectory() as folder:
        output = Path(folder) / "output.json"
        start(log, *FLWR, *arguments, "--format", "json", output=output).wait()
        text = output.read_text(encoding="utf-8")
    try:
        answer: dict[str, Any] = json.loads(text)
    except ValueError:
        with log.open("a", encoding="utf-8") as lines:
            lines.write(text)
        return {}
    return answer


def read_run_record(directory: Path) -> dict[str, Any]:
    """Return the contents of ``run.json``, or an empty dict if there is none yet."""
    path = directory / "run.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


@contextmanager
def record_outcome(directory: Path) -> Iterator[None]:
    """Make sure that ``run.json`` says how the run ended, even if its ServerApp could not."""
    before = read_run_record(directory)
    try:
        yield
    except KeyboardInterrupt:
        close_record(directory, "interrupted", "stopped from the keyboard", before)
        raise
    except FlowerRunFailed as error:
        _wait_until_unlocked(directory)
        close_record(directory, "failed", str(error), before)
        raise


def _wait_until_unlocked(directory: Path) -> None:
    """Wait for the ServerApp to release its lock; until then the run can't be resumed."""
    deadline = time.monotonic() + UNLOCK_SECONDS
    while (directory / ".lock").exists() and time.monotonic() < deadline:
        try:
            lock(directory).close()
        except RequestError:
            time.sleep(POLL_SECONDS)
        else:
            return


def close_record(directory: Path, status: str, reason: str, before: dict[str, Any]) -> None:
    """Record how the run ended if its ServerApp no longer can, or never started.

    ``before`` is the record when the run started or was resumed.
    """
    ended = read_run_record(directory)
    unexplained = ended == before or ended.get("status") in UNEXPLAINED
    if ended and unexplained and ended.get("status") != "done":
        ended |= {"status": status, "reason": reason, "ended": timestamp()}
        write_atomically(directory / "run.json", json.dumps(ended, indent=2).encode())
