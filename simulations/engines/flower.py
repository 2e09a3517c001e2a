"""Flower's own simulation: `flwr run` in a folder and an environment of its own.

All files of Flower and Ray are in one temporary directory, the run's *home*::

    app/         the app that `flwr run` bundles: a pyproject.toml with the experiment
    work/        the empty working directory of every process
    config.toml  FLWR_HOME: the address of our SuperLink
    ray/         Ray's session
    token        required by all ports of this Ray

We start the SuperLink ourselves: `flwr run` would leave it running, would reuse one that another
run or the user has started, and does not reveal its process id. The ServerApp itself writes the
run's directory.
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
from pudica.simulations.engines.local import build_run_config
from pudica.simulations.programs.bundle import write_bundle
from pudica.simulations.programs.calling import (
    CONNECTION,
    LOOPBACK,
    SUPERLINK,
    build_environment,
    find_free_port,
    is_healthy,
    make_private_folder,
    start_program,
    write_ray_token,
)
from pudica.simulations.programs.submission import FlowerRun, FlowerRunFailed, record_outcome
from pudica.strategies.core.experiment import Experiment

START_SECONDS = 60.0
END_SECONDS = 20.0

# Removes a run's home once its standard input closes: when the run is over, and also when we are
# killed. Only the working directory identifies all processes of the run: Flower and Ray start new
# sessions, and Ray's workers outlive their parents and overwrite their command line. Killing them
# is safe, since everything that matters is written atomically. (This is a separate program because
# importing this module takes as long as importing PyTorch.)
CLEANUP_SCRIPT = """
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
    """Run the experiment with `flwr run`, as a simulation on this machine.

    Ray always runs locally here, ``ray.address`` is not used. Flower's log is written to the run's
    directory as ``flower.log``.

    Raises
    ------
    FlowerRunFailed
        If the run's status is not ``finished:completed``; the message says why.
    RequestError
        If not even one client fits on this machine.
    """
    directory = directory.absolute()
    shares = build_federation_config(experiment, count_available_cpus())
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RequestError(f"--out: can't make {directory}: {error.strerror}") from error
    with record_outcome(directory), temporary_flower_home() as home:
        write_bundle(home.app, build_run_config(experiment, directory, "flower"))
        Simulation(home, directory).run(shares)


def count_available_cpus() -> int:
    """Return how many CPUs this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def build_federation_config(experiment: Experiment, cpus: int) -> str:
    """Return the value of ``--federation-config``.

    Flower only supports whole CPUs per client, and starts as many workers as fit, even if there are
    fewer nodes. So one "CPU" of its Ray stands for one worker, and we choose their number.

    Raises
    ------
    RequestError
        If the number of workers in the experiment does not fit.
    """
    client, nodes = experiment.client, len(experiment.names())
    wanted, room = experiment.ray.workers, int(cpus / client.num_cpus)
    if room < (wanted or 1):
        raise RequestError(
            f"ray.workers: {wanted or 1} workers of {client.num_cpus:g} CPUs do not fit on "
            f"{cpus} CPUs: lower client.num_cpus or ray.workers"
        )
    workers = min(wanted or room, nodes)
    return (
        f"num-supernodes={nodes} client-resources-num-cpus=1 init-args-num-cpus={workers} "
        f"client-resources-num-gpus={client.num_gpus}"
    )


class FlowerHome:
    """A run's home: its folder, and the processes started in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.app = path / "app"
        self.work = path / "work"
        self.processes: list[subprocess.Popen[bytes]] = []
        self._environment = build_environment(path) | write_ray_token(path)
        self.work.mkdir()

    def start(
        self, log: Path, *command: str, output: Path | None = None
    ) -> subprocess.Popen[bytes]:
        """Start one of Flower's commands; see :func:`start_program`."""
        process = start_program(command, self.work, self._environment, log, output)
        self.processes.append(process)
        return process


@contextmanager
def temporary_flower_home() -> Iterator[FlowerHome]:
    """Create a home; on exit, end all processes in it and remove it.

    Raises
    ------
    FlowerRunFailed
        If a process can't be ended.
    """
    home = FlowerHome(make_private_folder())
    command = [sys.executable, "-P", "-c", CLEANUP_SCRIPT, str(home.path)]
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


class Simulation:
    """One `flwr run` of the app in a home, with a SuperLink of its own."""

    def __init__(self, home: FlowerHome, directory: Path) -> None:
        self.home = home
        self._submission = FlowerRun(home.start, self._check_superlink, home.app, directory)
        self._superlink_log = home.path / "superlink.log"
        self._superlink: subprocess.Popen[bytes]

    def run(self, federation_config: str) -> None:
        """Run the simulation to its end; FlowerRunFailed if it does not complete."""
        self._start_superlink()
        self._submission.run("--federation-config", federation_config)

    def _start_superlink(self) -> None:
        port = find_free_port()
        connection = {"address": f"{LOOPBACK}:{port}", "insecure": True}
        settings = {"superlink": {"default": CONNECTION, CONNECTION: connection}}
        (self.home.path / "config.toml").write_text(tomli_w.dumps(settings), encoding="utf-8")
        place = ("--host", LOOPBACK, "--port", str(port))
        isolation = ("--insecure", "--simulation", "--isolation", "subprocess")
        self._superlink = self.home.start(self._superlink_log, *SUPERLINK, *isolation, *place)
        deadline = time.monotonic() + START_SECONDS
        while not is_healthy(port):
            self._check_superlink()
            if time.monotonic() > deadline:
                self._raise_failure(f"Flower's SuperLink did not answer within {START_SECONDS:g} s")
            time.sleep(0.1)

    def _check_superlink(self) -> None:
        if self._superlink.poll() is not None:
            self._raise_failure(f"Flower's SuperLink ended with code {self._superlink.returncode}")

    def _raise_failure(self, what: str) -> None:
        with self._submission.log.open("ab") as log:
            log.write(self._superlink_log.read_bytes())
        raise FlowerRunFailed(f"{what}:\n{self._submission.read_log_tail()}")
