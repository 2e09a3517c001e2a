"""One `flwr run`, from its start to its end."""

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
# After its ServerApp has failed, Flower still brings Ray up, to end it again; that is not
# waited for. In these seconds the traceback comes into the log where Ray is up already.
FAREWELL_SECONDS = 5.0
LOG_LINES = 15
LET_GO_SECONDS = 60.0
# What a run's record says where its ServerApp was killed, or ended because its server did.
UNEXPLAINED = ("running", "interrupted")
KILLED = "No heartbeat received"
STARTED = re.compile(r"started run (\d+)")

Start = Callable[..., "subprocess.Popen[bytes]"]


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
        start: Start,
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
        self._stop_former()
        self._stream(options)
        status = self._final_status()
        if status["status"] != "finished:completed":
            details = status["status-details"]
            reason = self.log_end() if details in ("", "N/A") else details
            if reason.startswith(KILLED):
                reason = "the run's ServerApp ended without a word: it was killed, or out of memory"
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
        text = self.log.read_text(encoding="utf-8", errors="replace")
        lines = remove_colours(text).splitlines()
        return "\n".join([line for line in lines if line.strip()][-LOG_LINES:])

    def _stop_former(self) -> None:
        """Stop the run with which this one goes on, if Flower has it still.

        A server that was started again takes a run for running whose ServerApp is gone, and hands
        its last messages on to nodes.
        """
        text = self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""
        former = STARTED.findall(text)
        known = asked(self._start, self.log, "ls", CONNECTION).get("runs", []) if former else []
        for run in known:
            if run["run-id"] in former and not run["status"].startswith("finished"):
                self._start(self.log, *FLWR, "stop", run["run-id"], CONNECTION).wait()

    def _own_reason(self) -> str:
        """Return why the ServerApp failed, by its own record of this run; else nothing."""
        now = record(self.directory)
        failed = now != self._before and now.get("status") == "failed"
        return str(now["reason"]) if failed else ""

    def _stream(self, options: tuple[str, ...]) -> None:
        """Submit the run, and keep its log until it ends."""
        command = ("run", str(self.app), CONNECTION, "--stream")
        submitted = self._submitted = self._start(self.log, *FLWR, *command, *options)
        try:
            while submitted.poll() is None and not self._own_reason():
                self._check()
                with suppress(subprocess.TimeoutExpired):
                    submitted.wait(POLL_SECONDS)
        except FlowerRunFailed:
            submitted.terminate()
            raise
        if reason := self._own_reason():
            with suppress(subprocess.TimeoutExpired):
                submitted.wait(FAREWELL_SECONDS)
            raise FlowerRunFailed(reason)
        self._check()
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
        answer = asked(self._start, self.log, "ls", CONNECTION)
        if not answer.get("runs"):
            raise FlowerRunFailed(f"`flwr ls` failed: {answer}\n{self.log_end()}")
        return answer["runs"][0]  # type: ignore[no-any-return]


def asked(start: Start, log: Path, *arguments: str) -> dict[str, Any]:
    """Return what one of Flower's commands says as JSON; what is none is left in the log."""
    with TemporaryDirectory() as folder:
        said = Path(folder) / "said.json"
        start(log, *FLWR, *arguments, "--format", "json", output=said).wait()
        text = said.read_text(encoding="utf-8")
    try:
        answer: dict[str, Any] = json.loads(text)
    except ValueError:
        with log.open("a", encoding="utf-8") as lines:
            lines.write(text)
        return {}
    return answer


def record(directory: Path) -> dict[str, Any]:
    """Return the run's ``run.json``, empty if there is none yet."""
    path = directory / "run.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


@contextmanager
def recorded(directory: Path) -> Iterator[None]:
    """See that the record of a run says how it ended, where its ServerApp can't."""
    before = record(directory)
    try:
        yield
    except KeyboardInterrupt:
        close_record(directory, "interrupted", "stopped from the keyboard", before)
        raise
    except FlowerRunFailed as error:
        _until_let_go(directory)
        close_record(directory, "failed", str(error), before)
        raise


def _until_let_go(directory: Path) -> None:
    """Wait for the ServerApp: one whose server is gone ends soon, and could not be resumed yet."""
    deadline = time.monotonic() + LET_GO_SECONDS
    while (directory / ".lock").exists() and time.monotonic() < deadline:
        try:
            lock(directory).close()
        except RequestError:
            time.sleep(POLL_SECONDS)
        else:
            return


def close_record(directory: Path, status: str, reason: str, before: dict[str, Any]) -> None:
    """Say how the run ended where its ServerApp can't any more, or never began.

    Parameters
    ----------
    before : dict
        The record as it was when the run began, or went on.
    """
    ended = record(directory)
    unexplained = ended == before or ended.get("status") in UNEXPLAINED
    if ended and unexplained and ended.get("status") != "done":
        ended |= {"status": status, "reason": reason, "ended": timestamp()}
        write_atomically(directory / "run.json", json.dumps(ended, indent=2).encode())
