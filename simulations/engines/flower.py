"""Flower's own simulation: `flwr run`, from a place and in an environment of its own.

Everything that Flower and Ray write lies in one temporary directory, the run's *home*::

    app/         what `flwr run` bundles: our packages and a pyproject.toml with the experiment
    work/        empty; the working directory of every process, so that no package found in the
                 user's own can win over the bundle's
    config.toml  FLWR_HOME: the address of our SuperLink
    ray/         Ray's session

The SuperLink is started here and not by `flwr run`, which would leave it running, would take
one that another run or the user has started, and tells nobody its process id. What lies in the
run's directory is written there by the ServerApp itself.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import tomli_w

import clients
import models
import strategies
from clients.data.places import cache_root, data_root
from models.errors import RequestError
from models.files import write_atomically
from simulations.engines.local import run_config
from strategies.experiment import ClientConfig, Experiment
from strategies.loading import SHIPPED

PACKAGES: tuple[ModuleType, ...] = (models, clients, strategies)
TRAVELLING = {".py", ".yaml", ".toml", ".json"}
CONNECTION = "pudica"
START_SECONDS = 60.0
END_SECONDS = 20.0
POLL_SECONDS = 0.5
# After its ServerApp has failed, Flower still brings Ray up, to end it again; that is not
# waited for. In these seconds the traceback comes into the log where Ray is up already.
FAREWELL_SECONDS = 5.0
LOG_LINES = 15
# Ray's sockets lie some 70 characters below; a socket's path has room for 103 on macOS.
LONGEST_PARENT = 16

SUPERLINK = ("-c", "from flwr.superlink.cli import flower_superlink as main; main()")
FLWR = ("-c", "from flwr.cli.app import app as main; main()")
# Clears a run's home away once its standard input closes: when the run is over, and just as
# well when we were killed. Only the working directory tells all processes of the run: Flower
# and Ray start new sessions, Ray's workers outlive their parents and overwrite their command
# line. Killing is safe, whatever matters is written atomically. (A program of its own, because
# importing this module takes as long as PyTorch does.)
KEEPER = """
import contextlib, shutil, sys, time
from pathlib import Path
import psutil

def works_in(home, process):
    try:
        return Path(process.cwd()).is_relative_to(home)
    except psutil.Error:  # gone already, or another user's
        return False

home = sys.argv[1]
sys.stdin.read()
while found := [process for process in psutil.process_iter() if works_in(home, process)]:
    for process in found:
        with contextlib.suppress(psutil.Error):
            process.kill()
    time.sleep(0.1)
shutil.rmtree(home, ignore_errors=True)
"""


class FlowerRunFailed(RuntimeError):
    """Flower's simulation did not complete; says why."""


def run(experiment: Experiment, directory: Path) -> None:
    """Run the experiment by `flwr run`, as a simulation on this machine.

    Parameters
    ----------
    experiment : Experiment
        Ray is always a local one here; ``ray.address`` is not used.
    directory : Path
        Of the run. Flower's log is kept there as ``flower.log``.

    Raises
    ------
    FlowerRunFailed
        With the reason, if the run's status is not ``finished:completed``.
    RequestError
        If not even one client fits on this machine.
    """
    directory = directory.absolute()
    shares = federation_config(experiment, available_cpus())
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RequestError(f"--out: can't make {directory}: {error.strerror}") from error
    try:
        with temporary_home() as home:
            stage(home.app, run_config(experiment, directory, "flower"))
            Simulation(home, directory).run(shares)
    except KeyboardInterrupt:
        _close_record(directory, "interrupted", "stopped from the keyboard")
        raise
    except FlowerRunFailed as error:
        _close_record(directory, "failed", str(error))
        raise


# ------------------------------------------------------------------------- what is run


def stage(app: Path, config: dict[str, str]) -> None:
    """Write the app's folder: our packages, wherever they are installed, and the experiment.

    The experiment is the configuration's default and not a ``--run-config``: Flower splits
    that at quotation marks.
    """
    for package in PACKAGES:
        _copy_sources(Path(str(package.__file__)).parent, app / package.__name__)
    _copy_sources(SHIPPED, app / "simulations" / "experiments")
    components = {"serverapp": "strategies.app:app", "clientapp": "clients.app:app"}
    pyproject = {
        "project": {"name": "pudica", "version": "0.0.0", "description": "One run of Pudica"},
        "tool": {
            "flwr": {"app": {"publisher": "pudica", "components": components, "config": config}}
        },
    }
    (app / "pyproject.toml").write_text(tomli_w.dumps(pyproject), encoding="utf-8")


def _copy_sources(source: Path, target: Path) -> None:
    """Copy what a bundle can carry; compiled and other files stay behind."""
    for file in source.rglob("*"):
        if file.suffix in TRAVELLING and file.is_file():
            copy = target / file.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)


def available_cpus() -> int:
    """Return how many CPUs this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def federation_config(experiment: Experiment, cpus: int) -> str:
    """Return the value of ``--federation-config``.

    Flower knows whole CPUs per client only, and starts as many workers as fit, even where
    there are fewer nodes. So a "CPU" of its Ray stands for one worker, and their number is
    chosen here.

    Raises
    ------
    RequestError
        If the workers that the experiment asks for do not fit.
    """
    client, nodes = experiment.client, len(experiment.names())
    workers = _worker_count(client, experiment.ray.workers, cpus, nodes)
    return (
        f"num-supernodes={nodes} client-resources-num-cpus=1 init-args-num-cpus={workers} "
        f"client-resources-num-gpus={client.num_gpus}"
    )


def _worker_count(client: ClientConfig, wanted: int | None, cpus: int, nodes: int) -> int:
    room = int(cpus / client.num_cpus)
    if room < (wanted or 1):
        raise RequestError(
            f"ray.workers: {wanted or 1} workers of {client.num_cpus:g} CPUs do not fit on "
            f"{cpus} CPUs: lower client.num_cpus or ray.workers"
        )
    return min(wanted or room, nodes)


# ------------------------------------------------------------------------ where it runs


class Home:
    """A run's home: its folder, and the processes that were started in it.

    Parameters
    ----------
    path : Path
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.app = path / "app"
        self.work = path / "work"
        self.processes: list[subprocess.Popen[bytes]] = []
        self._environment = environment_of(path)
        self.work.mkdir()

    def start(
        self, log: Path, *command: str, output: Path | None = None
    ) -> subprocess.Popen[bytes]:
        """Start one of Flower's commands, out of reach of the terminal's Ctrl-C.

        Parameters
        ----------
        log : Path
            Where it writes to.
        *command : str
            Python's arguments.
        output : Path or None
            Where its standard output goes instead.
        """
        with log.open("ab") as errors, (output or log).open("ab") as standard:
            process = subprocess.Popen(
                [sys.executable, "-P", *command],
                cwd=self.work,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=standard,
                stderr=errors,
                start_new_session=True,
            )
        self.processes.append(process)
        return process


@contextmanager
def temporary_home() -> Iterator[Home]:
    """Make a home; at the end nothing runs in it any more, and it is gone.

    Raises
    ------
    FlowerRunFailed
        If a process can't be ended.
    """
    parent = tempfile.gettempdir()
    short = parent if len(parent) <= LONGEST_PARENT or os.name == "nt" else "/tmp"
    home = Home(Path(tempfile.mkdtemp(prefix="pudica-", dir=short)).resolve())
    command = [sys.executable, "-P", "-c", KEEPER, str(home.path)]
    keeper = subprocess.Popen(
        command, cwd=home.path.parent, stdin=subprocess.PIPE, start_new_session=True
    )
    try:
        yield home
    finally:
        try:
            keeper.communicate(timeout=END_SECONDS)
        except subprocess.TimeoutExpired:
            raise FlowerRunFailed(f"processes of the run in {home.path} do not end") from None
        for process in home.processes:
            process.wait()


def environment_of(home: Path) -> dict[str, str]:
    """Return the environment of the run's processes.

    The user's own, but for Flower's settings, with which they might meet another SuperLink,
    and with every path absolute.
    """
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("FLWR_")}
    search = [str(Path(p).absolute()) for p in os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    executables = (str(Path(sys.executable).parent), sysconfig.get_path("scripts"))
    own = {
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",
        # `local` keeps Ray from joining a cluster that runs on this machine.
        "RAY_ADDRESS": "local",
        "RAY_TMPDIR": str(home),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "PUDICA_DATA": str(data_root().absolute()),
        "PUDICA_CACHE": str(cache_root().absolute()),
        # Flower's processes start one another by name, activated environment or not.
        "PATH": os.pathsep.join([*executables, os.environ.get("PATH", os.defpath)]),
        "PYTHONUNBUFFERED": "1",
        "PYTHONIOENCODING": "utf-8",
    }
    if os.environ.get("PYTHONPATH"):
        own["PYTHONPATH"] = os.pathsep.join(search)
    for name in ("no_proxy", "NO_PROXY"):
        own[name] = ",".join(filter(None, [os.environ.get(name), "127.0.0.1", "localhost"]))
    return inherited | own


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


# ------------------------------------------------------------------------- how it runs


class Simulation:
    """One `flwr run` with a SuperLink of its own.

    Parameters
    ----------
    home : Home
        With the staged app in it.
    directory : Path
        Of the run.
    """

    def __init__(self, home: Home, directory: Path) -> None:
        self.home = home
        self.directory = directory
        self.log = directory / "flower.log"
        self._superlink_log = home.path / "superlink.log"
        self._superlink: subprocess.Popen[bytes]
        self._before = _record(directory)

    def run(self, federation_config: str) -> None:
        """Run to the end.

        Raises
        ------
        FlowerRunFailed
            If it does not complete.
        """
        self._start_superlink()
        self._stream(federation_config)
        status = self._final_status()
        if status["status"] != "finished:completed":
            details = status["status-details"]
            reason = self._log_end() if details in ("", "N/A") else details
            raise FlowerRunFailed(f"{reason} (status {status['status']}; see {self.log})")

    def _own_reason(self) -> str:
        """Return why the ServerApp failed, by its own record of this run; else nothing."""
        record = _record(self.directory)
        failed = record != self._before and record.get("status") == "failed"
        return str(record["reason"]) if failed else ""

    def _start_superlink(self) -> None:
        port = _free_port()
        connection = {"address": f"127.0.0.1:{port}", "insecure": True}
        settings = {"superlink": {"default": CONNECTION, CONNECTION: connection}}
        (self.home.path / "config.toml").write_text(tomli_w.dumps(settings), encoding="utf-8")
        place = ("--host", "127.0.0.1", "--port", str(port))
        isolation = ("--insecure", "--simulation", "--isolation", "subprocess")
        self._superlink = self.home.start(self._superlink_log, *SUPERLINK, *isolation, *place)
        deadline = time.monotonic() + START_SECONDS
        while not _healthy(port):
            self._check_superlink()
            if time.monotonic() > deadline:
                self._fail(f"Flower's SuperLink did not answer within {START_SECONDS:g} s")
            time.sleep(0.1)

    def _check_superlink(self) -> None:
        if self._superlink.poll() is not None:
            self._fail(f"Flower's SuperLink ended with code {self._superlink.returncode}")

    def _fail(self, what: str) -> None:
        with self.log.open("ab") as log:
            log.write(self._superlink_log.read_bytes())
        raise FlowerRunFailed(f"{what}:\n{self._log_end()}")

    def _log_end(self) -> str:
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join([line for line in lines if line.strip()][-LOG_LINES:])

    def _stream(self, federation_config: str) -> None:
        """Submit the run, and keep its log until it ends."""
        command = ("run", str(self.home.app), CONNECTION, "--stream")
        submitted = self.home.start(
            self.log, *FLWR, *command, "--federation-config", federation_config
        )
        while submitted.poll() is None and not self._own_reason():
            self._check_superlink()
            with suppress(subprocess.TimeoutExpired):
                submitted.wait(POLL_SECONDS)
        if reason := self._own_reason():
            with suppress(subprocess.TimeoutExpired):
                submitted.wait(FAREWELL_SECONDS)
            raise FlowerRunFailed(reason)
        if submitted.returncode:
            raise FlowerRunFailed(f"`flwr run` failed:\n{self._log_end()}")

    def _final_status(self) -> dict[str, str]:
        """Return the run as the SuperLink sees it; `flwr run --stream` ends well in any case."""
        while True:
            self._check_superlink()
            found = self._listed()
            if found["status"].startswith("finished"):
                return found
            time.sleep(POLL_SECONDS)

    def _listed(self) -> dict[str, str]:
        """Return what `flwr ls` says of the only run of our SuperLink."""
        listing = self.home.path / "runs.json"
        listing.unlink(missing_ok=True)
        command = ("ls", CONNECTION, "--format", "json")
        code = self.home.start(self.log, *FLWR, *command, output=listing).wait()
        text = listing.read_text(encoding="utf-8")
        if code or not (runs := json.loads(text).get("runs")):
            raise FlowerRunFailed(f"`flwr ls` failed: {text}\n{self._log_end()}")
        return runs[0]  # type: ignore[no-any-return]


def _healthy(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status < 300
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


# ---------------------------------------------------------------------------- the record


def _record(directory: Path) -> dict[str, Any]:
    """Return the run's ``run.json``, empty if there is none yet."""
    path = directory / "run.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _close_record(directory: Path, status: str, reason: str) -> None:
    """Say how the run ended where its ServerApp can't any more."""
    record = _record(directory)
    if record.get("status") == "running":
        ended = datetime.now(UTC).isoformat(timespec="seconds")
        record |= {"status": status, "reason": reason, "ended": ended}
        write_atomically(directory / "run.json", json.dumps(record, indent=2).encode())
