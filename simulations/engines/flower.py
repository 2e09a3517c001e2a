"""Flower's own simulation: `flwr run`, from a place and in an environment of its own.

Everything that Flower and Ray write lies in one temporary directory, the run's *home*::

    app/         what `flwr run` bundles: a pyproject.toml with the experiment
    work/        empty; the working directory of every process
    config.toml  FLWR_HOME: the address of our SuperLink
    ray/         Ray's session
    token        without which nobody gets into this Ray

The SuperLink is started here and not by `flwr run`, which would leave it running, would take
one that another run or the user has started, and tells nobody its process id. What lies in the
run's directory is written there by the ServerApp itself.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import tomli_w

from pudica.models.errors import RequestError
from pudica.simulations.engines.local import run_config
from pudica.simulations.programs.bundle import stage
from pudica.simulations.programs.calling import (
    CONNECTION,
    LOOPBACK,
    SUPERLINK,
    begun,
    environment_of,
    free_port,
    healthy,
    make_private_folder,
    write_ray_token,
)
from pudica.simulations.programs.submission import FlowerRunFailed, Submission, recorded
from pudica.strategies.core.experiment import ClientConfig, Experiment

START_SECONDS = 60.0
END_SECONDS = 20.0

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
    with recorded(directory), temporary_home() as home:
        stage(home.app, run_config(experiment, directory, "flower"))
        Simulation(home, directory).run(shares)


# ------------------------------------------------------------------------- what is run


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
        self._environment = environment_of(path) | write_ray_token(path)
        self.work.mkdir()

    def start(
        self, log: Path, *command: str, output: Path | None = None
    ) -> subprocess.Popen[bytes]:
        """Start one of Flower's commands; see :func:`begun`."""
        process = begun(command, self.work, self._environment, log, output)
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
    home = Home(make_private_folder())
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
        self._submission = Submission(home.start, self._check_superlink, home.app, directory)
        self._superlink_log = home.path / "superlink.log"
        self._superlink: subprocess.Popen[bytes]

    def run(self, federation_config: str) -> None:
        """Run to the end.

        Raises
        ------
        FlowerRunFailed
            If it does not complete.
        """
        self._start_superlink()
        self._submission.run("--federation-config", federation_config)

    def _start_superlink(self) -> None:
        port = free_port()
        connection = {"address": f"{LOOPBACK}:{port}", "insecure": True}
        settings = {"superlink": {"default": CONNECTION, CONNECTION: connection}}
        (self.home.path / "config.toml").write_text(tomli_w.dumps(settings), encoding="utf-8")
        place = ("--host", LOOPBACK, "--port", str(port))
        isolation = ("--insecure", "--simulation", "--isolation", "subprocess")
        self._superlink = self.home.start(self._superlink_log, *SUPERLINK, *isolation, *place)
        deadline = time.monotonic() + START_SECONDS
        while not healthy(port):
            self._check_superlink()
            if time.monotonic() > deadline:
                self._fail(f"Flower's SuperLink did not answer within {START_SECONDS:g} s")
            time.sleep(0.1)

    def _check_superlink(self) -> None:
        if self._superlink.poll() is not None:
            self._fail(f"Flower's SuperLink ended with code {self._superlink.returncode}")

    def _fail(self, what: str) -> None:
        with self._submission.log.open("ab") as log:
            log.write(self._superlink_log.read_bytes())
        raise FlowerRunFailed(f"{what}:\n{self._submission.log_end()}")
