"""Whole deployments over TLS: each system's table is that of one process, whatever dies.

They take minutes each, so they are run by ``make test-slow``.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from pudica.models.errors import RequestError
from pudica.simulations.deployment.place import ProgramFolder
from pudica.simulations.deployment.trial import Trial, count_differences
from pudica.simulations.programs.submission import FlowerRunFailed
from pudica.strategies.core.experiment import Experiment
from pudica.strategies.core.recorder import lock
from pudica.strategies.loading import load_experiment

pytestmark = pytest.mark.slow

# Seeded, so that the same can be computed here.
SYSTEMS = {
    "themis-digits": (
        *("training.epochs=2", "themis.epochs=3", "themis.examiner=null"),
        *("themis.release.secret=false", "client.timeout=60"),
    ),
    "split-digits": ("split.epochs=2", "split.noise=seeded"),
    "dlmt-digits": (
        "dlmt.training.epochs=2",
        "dlmt.cases={federated: {shield: MAT(256), train: federated, local_epochs: 1}}",
    ),
    "facemix-digits": ("facemix.cases={mixed: {}}", "facemix.keys=seeded"),
}
NODES = 3


class Deployment(Trial):
    """An organiser and nodes of its experiment, on this machine."""

    def __init__(self, folder: Path, name: str, nodes: int = NODES) -> None:
        super().__init__(folder)
        self.name = name
        self.stopped: list[str] = []
        experiment = load_experiment(name, [])
        names = [*experiment.names(), *(f"another-{number}" for number in range(nodes))]
        self.up(names[:nodes], experiment.system)

    def run(self, *overrides: str, disturb: Callable[[Path], None] | None = None) -> Path:
        """Run, and go on with what was stopped as often as it is; return the run's directory."""
        wanted = [*SYSTEMS[self.name], *overrides]
        experiment, directory = self.organiser.prepare(self.name, wanted, None)
        thread = threading.Thread(target=disturb, args=(directory,)) if disturb else None
        if thread:
            thread.start()
        while not self.is_done(experiment, directory):
            assert thread
            until(self.organiser.is_up)
            experiment, directory = self.organiser.prepare(None, [], directory)
        if thread:
            thread.join()
        return directory

    def is_done(self, experiment: Experiment, directory: Path) -> bool:
        """Run to the end; False if it is stopped, for a reason that its record tells."""
        try:
            self.organiser.run(experiment, directory)
        except FlowerRunFailed as error:
            self.stopped.append(str(error))
        else:
            return True
        record = json.loads((directory / "run.json").read_text())
        assert (record["status"], record["reason"]) == ("failed", self.stopped[-1])
        return False

    def same_as_here(self, directory: Path) -> bool:
        """Tell whether one process measures the same, but for seconds."""
        return count_differences(directory, self.folder / "here" / directory.name) == 0


@pytest.fixture
def deployed(tmp_path: Path) -> Iterator[Callable[..., Deployment]]:
    with ExitStack() as ends:
        yield lambda *what: ends.enter_context(Deployment(tmp_path, *what))


def until(holds: Callable[[], object]) -> None:
    """Wait for something, not for ever."""
    deadline = time.monotonic() + 300
    while not holds():
        assert time.monotonic() < deadline, "it does not come to that"
        time.sleep(0.1)


def is_noise_trained(directory: Path) -> bool:
    """Tell whether a run is in the midst of its generator's training."""
    progress = directory / "progress.json"
    state = json.loads(progress.read_text()) if progress.exists() else {"stage": ""}
    return state["stage"].startswith("noise generator") and state["done"] >= 1


# Of THEMIS, whose competition can be audited, ``test_deployment.py`` has a test of its own.
@pytest.mark.parametrize("name", [name for name in SYSTEMS if name != "themis-digits"])
def test_a_deployed_run_measures_what_one_process_does(
    deployed: Callable[..., Deployment], name: str
) -> None:
    deployment = deployed(name)
    directory = deployment.run()
    assert deployment.same_as_here(directory)
    assert sum(r["count"] for r in _exchanges(directory)) / NODES < 60


def _exchanges(directory: Path) -> list[dict[str, int]]:
    found = json.loads((directory / "run.json").read_text())["exchanges"]
    return list(found.values())


def test_whatever_is_killed_or_cut_off_nothing_is_missing(
    deployed: Callable[..., Deployment],
) -> None:
    """Gate, node, ClientApp, a node's connection, SuperLink, ServerApp, one after the other."""
    deployment = deployed("themis-digits", 2)
    organiser, (victim, other) = deployment.organiser, deployment.kits.values()

    def disturb(directory: Path) -> None:
        until(lambda: is_noise_trained(directory))
        superlink = family(organiser, "superlink")
        end(family(organiser, "gate"))
        organiser.up()
        assert family(organiser, "superlink")[0] == superlink[0]
        end(family(victim, "supernode"))
        victim.up()
        end(family(other, "clientapp"))
        other.up()
        with stopped([*family(other, "supernode"), *family(other, "clientapp")]):
            time.sleep(65)  # longer than Flower waits for a sign of life
        end(family(organiser, "superlink")[:1])
        organiser.up()
        until(lambda: serverapps(organiser) and held(directory))
        end(serverapps(organiser))

    directory = deployment.run("themis.epochs=6", "client.timeout=600", disturb=disturb)
    server, app = deployment.stopped
    assert "the server (superlink) ended during the run" in server
    assert "ServerApp ended without a word" in app
    events = (directory / "events.log").read_text()
    logs = (kit.programs.read_log(p) for kit in (victim, other) for p in kit.PROGRAMS)
    assert "dropout" not in events, "\n".join([events, *logs])
    assert deployment.same_as_here(directory)
    model = victim.folder / "vault" / directory.name / victim.config.name
    assert (model / "model-honest.safetensors").is_file()


def family(place: ProgramFolder, program: str) -> list[psutil.Process]:
    """Return a program's process, and those below it."""
    process = place.programs.find_process(program)
    assert process
    return [process, *process.children(recursive=True)]


def serverapps(organiser: ProgramFolder) -> list[psutil.Process]:
    """Return the ServerApp that runs, if one does."""
    return [p for p in family(organiser, "superlink") if "flwr-serverapp" in _said(p)]


def _said(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:  # it has ended
        return ""


def held(directory: Path) -> bool:
    """Tell whether a process runs a run."""
    try:
        lock(directory).close()
    except RequestError:
        return True
    return False


def end(processes: list[psutil.Process]) -> None:
    """Kill processes, and wait until they are gone."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=30)


@contextmanager
def stopped(processes: list[psutil.Process]) -> Iterator[None]:
    """Let processes stand still: a machine whose connection is gone says no more."""
    for process in processes:
        process.suspend()
    try:
        yield
    finally:
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.resume()
