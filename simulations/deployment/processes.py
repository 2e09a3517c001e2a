"""Programs that go on after the command that started them, known by files in a folder."""

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
from pudica.simulations.programs.calling import begun, spelled

END_SECONDS = 15.0


class Programs:
    """The programs of one folder, with their logs.

    Parameters
    ----------
    folder : Path
        Working directory of all of them, and the place of ``NAME.log`` and ``NAME.pid``. It
        holds no packages: Flower puts it on its processes' path.
    environment : mapping of str to str
    told : callable
        Is told each command.
    """

    def __init__(
        self, folder: Path, environment: Mapping[str, str], told: Callable[[str], None]
    ) -> None:
        self.folder = folder
        self.told = told
        self.environment = dict(environment)

    def start(self, name: str, arguments: Sequence[str]) -> None:
        """Start a program that is to go on.

        Parameters
        ----------
        arguments : sequence of str
            Of Python.

        Raises
        ------
        RequestError
            If it runs already.
        """
        if (running := self.process(name)) is not None:
            raise RequestError(f"{name} runs already, process {running.pid}; `pudica deploy down`")
        self.log(name).unlink(missing_ok=True)  # that of the last start
        started = self.run(self.log(name), *arguments)
        created = psutil.Process(started.pid).create_time()
        known = json.dumps({"pid": started.pid, "created": created})
        write_atomically(self._file(name), known.encode())

    def run(
        self, log: Path, *arguments: str, output: Path | None = None
    ) -> subprocess.Popen[bytes]:
        """Start a program that ends by itself; see :func:`begun`."""
        self.told(spelled(arguments))
        return begun(arguments, self.folder, self.environment, log, output)

    def log(self, name: str) -> Path:
        """Return where a program writes to."""
        return self.folder / f"{name}.log"

    def text(self, name: str) -> str:
        """Return what a program has written since its last start; nothing if it never began."""
        log = self.log(name)
        return log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""

    def process(self, name: str) -> psutil.Process | None:
        """Return a program's process, if it is there: another's with its number is not."""
        try:
            known = json.loads(self._file(name).read_text())
            process = psutil.Process(known["pid"])
            same = abs(process.create_time() - known["created"]) < 1
            alive = process.status() != psutil.STATUS_ZOMBIE
        except (FileNotFoundError, psutil.NoSuchProcess):
            return None
        return process if same and alive else None

    def stop(self, name: str) -> bool:
        """End a program and what it has started; return whether it was there."""
        process = self.process(name)
        if process is not None:
            family = [process]
            with suppress(psutil.NoSuchProcess):
                family += process.children(recursive=True)
            for signalled in ("terminate", "kill"):
                for member in family:
                    with suppress(psutil.NoSuchProcess):
                        getattr(member, signalled)()
                _, family = psutil.wait_procs(family, timeout=END_SECONDS)
        self._file(name).unlink(missing_ok=True)
        return process is not None

    def end_of(self, name: str, lines: int = 10) -> str:
        """Return the last lines that a program wrote."""
        plain = remove_colours(self.text(name))
        return "\n".join([line for line in plain.splitlines() if line.strip()][-lines:])

    def wait(self, name: str, ready: Callable[[], bool], seconds: float) -> bool:
        """Wait until a program is ready; return whether it is.

        Raises
        ------
        RequestError
            It has ended; with its last lines.
        """
        deadline = time.monotonic() + seconds
        while not ready():
            self.check(name)
            if time.monotonic() > deadline:
                return False
            time.sleep(0.1)
        return True

    def check(self, name: str) -> None:
        """See that a program is there.

        Raises
        ------
        RequestError
            It is not; with its last lines.
        """
        if self.process(name) is None:
            raise RequestError(f"{name} has ended; the end of its log:\n{self.end_of(name)}")

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.pid"
