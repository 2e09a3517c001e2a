"""Background programs, which outlive the command that started them, and their pid files."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from pudica.models.errors import RequestError
from pudica.models.files import write_atomically
from pudica.models.printable import remove_colours
from pudica.simulations.programs.calling import format_command, start_program

END_SECONDS = 15.0


class Programs:
    """The background programs of one folder, with their logs.

    Parameters
    ----------
    folder : Path
        Working directory of all programs, with ``NAME.log`` and ``NAME.pid``. It must not contain
        packages, since Flower adds it to the import path of its processes.
    environment : mapping of str to str
    notify : callable
        Called with each command.
    """

    def __init__(
        self, folder: Path, environment: Mapping[str, str], notify: Callable[[str], None]
    ) -> None:
        self.folder = folder
        self.notify = notify
        self.environment = dict(environment)

    def start(self, name: str, arguments: Sequence[str]) -> None:
        """Start a program in the background.

        Parameters
        ----------
        arguments : sequence of str
            Arguments of the Python interpreter.

        Raises
        ------
        RequestError
            If it is running already.
        """
        if (running := self.find_process(name)) is not None:
            raise RequestError(
                f"{name} is running already, process {running.pid}; `pudica deploy down`"
            )
        self.log_file(name).unlink(missing_ok=True)  # the log of the previous start
        started = self.launch(self.log_file(name), *arguments)
        created = psutil.Process(started.pid).create_time()
        known = json.dumps({"pid": started.pid, "created": created})
        write_atomically(self._pid_file(name), known.encode())

    def launch(
        self, log: Path, *arguments: str, output: Path | None = None
    ) -> subprocess.Popen[bytes]:
        """Start a program that ends by itself; see :func:`start_program`."""
        self.notify(format_command(arguments))
        return start_program(arguments, self.folder, self.environment, log, output)

    def log_file(self, name: str) -> Path:
        """Return the path of a program's log."""
        return self.folder / f"{name}.log"

    def read_log(self, name: str) -> str:
        """Return a program's output since its last start, or "" if it never started."""
        log = self.log_file(name)
        return log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""

    def find_process(self, name: str) -> psutil.Process | None:
        """Return a program's process if it is running; other processes with its pid don't count."""
        try:
            known = json.loads(self._pid_file(name).read_text())
            process = psutil.Process(known["pid"])
            same = abs(process.create_time() - known["created"]) < 1
            alive = process.status() != psutil.STATUS_ZOMBIE
        except (FileNotFoundError, psutil.NoSuchProcess):
            return None
        return process if same and alive else None

    def stop(self, name: str) -> bool:
        """Stop a program and its children; return whether it was running."""
        process = self.find_process(name)
        if process is not None:
            family = [process]
            with suppress(psutil.NoSuchProcess):
                family += process.children(recursive=True)
            for signalled in ("terminate", "kill"):
                for member in family:
                    with suppress(psutil.NoSuchProcess):
                        getattr(member, signalled)()
                _, family = psutil.wait_procs(family, timeout=END_SECONDS)
        self._pid_file(name).unlink(missing_ok=True)
        return process is not None

    def read_log_tail(self, name: str, lines: int = 10) -> str:
        """Return the last lines of a program's log."""
        plain = remove_colours(self.read_log(name))
        return "\n".join([line for line in plain.splitlines() if line.strip()][-lines:])

    def wait(self, name: str, ready: Callable[[], bool], seconds: float) -> bool:
        """Wait until a program is ready; return whether it is.

        Raises
        ------
        RequestError
            If it has ended; the message contains the end of its log.
        """
        deadline = time.monotonic() + seconds
        while not ready():
            self.check_running(name)
            if time.monotonic() > deadline:
                return False
            time.sleep(0.1)
        return True

    def check_running(self, name: str) -> None:
        """Check that a program is running.

        Raises
        ------
        RequestError
            If it is not; the message contains the end of its log.
        """
        if self.find_process(name) is None:
            raise RequestError(f"{name} has ended; the end of its log:\n{self.read_log_tail(name)}")

    def _pid_file(self, name: str) -> Path:
        return self.folder / f"{name}.pid"
