"""Whole deployments over TLS: each system's table is that of one process, whatever dies.

They take minutes each, so they are run by ``make test-deploy``.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import psutil
import pytest

import analysis
from simulations.deployment.invitation import Invitation
from simulations.deployment.kit import Kit
from simulations.deployment.organiser import Organiser
from simulations.engines import inprocess
from simulations.programs.calling import LOOPBACK, free_port
from simulations.programs.submission import FlowerRunFailed
from strategies.loading import load_experiment

pytestmark = pytest.mark.deployment

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
NODES = 2


class Deployment:
    """An organiser and nodes of its experiment, on this machine."""

    def __init__(self, folder: Path, name: str) -> None:
        self.name = name
        self.folder = folder
        self.organiser = Organiser.init(folder / "organiser", LOOPBACK, free_port())
        self.kits: list[Kit] = []

    def up(self) -> None:
        """Start everything."""
        experiment = load_experiment(self.name, [])
        self.organiser.up()
        invitation = Invitation.read(self.organiser.folder / "invitation.yaml")
        for name in experiment.names()[:NODES]:
            kit = Kit.make(self.folder / name, name, invitation, experiment.system, trust=True)
            self.organiser.register(kit.public, name)
            self.kits.append(kit)
            kit.up()

    def down(self) -> None:
        """End everything."""
        for each in (*self.kits, self.organiser):
            each.down()

    def run(self, disturb: Callable[[Path], None] | None = None) -> Path:
        """Run, and go on with what was stopped; return the run's directory."""
        experiment, directory, _ = self.organiser.prepare(self.name, [*SYSTEMS[self.name]], None)
        thread = threading.Thread(target=disturb, args=(directory,)) if disturb else None
        if thread:
            thread.start()
        try:
            self.organiser.run(experiment, directory)
        except FlowerRunFailed:
            assert thread
            experiment, directory, _ = self.organiser.prepare(None, [], directory)
            self.organiser.run(experiment, directory)
        if thread:
            thread.join()
        return directory

    def same_as_here(self, directory: Path) -> bool:
        """Tell whether one process measures the same, but for seconds."""
        here = self.folder / "here" / directory.name
        inprocess.run(load_experiment(str(directory / "experiment.yaml"), []), here)
        frames = [analysis.load(run).drop(columns="run") for run in (directory, here)]
        deployed, ours = (f[f["metric"] != "seconds"].reset_index(drop=True) for f in frames)
        return bool(deployed.equals(ours))


@pytest.fixture
def deployed(tmp_path: Path) -> Iterator[Callable[[str], Deployment]]:
    made: list[Deployment] = []

    def deploy(name: str) -> Deployment:
        made.append(Deployment(tmp_path, name))
        made[-1].up()
        return made[-1]

    yield deploy
    for one in made:
        one.down()


def until_noise_is_trained(directory: Path) -> None:
    """Wait until a run is in the midst of its generator's training."""
    for _ in range(3000):
        progress = directory / "progress.json"
        if progress.exists():
            state = json.loads(progress.read_text())
            if state["stage"].startswith("noise generator") and state["done"] >= 1:
                return
        time.sleep(0.1)
    raise AssertionError("the run does not get there")


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_deployed_run_measures_what_one_process_does(
    deployed: Callable[[str], Deployment], name: str
) -> None:
    deployment = deployed(name)
    directory = deployment.run()
    assert deployment.same_as_here(directory)
    assert sum(r["count"] for r in _exchanges(directory)) / NODES < 60


def _exchanges(directory: Path) -> list[dict[str, int]]:
    found = json.loads((directory / "run.json").read_text())["exchanges"]
    return list(found.values())


def test_a_serverapp_that_is_killed_goes_on_where_it_was(
    deployed: Callable[[str], Deployment],
) -> None:
    deployment = deployed("themis-digits")

    def kill(directory: Path) -> None:
        until_noise_is_trained(directory)
        superlink = deployment.organiser.programs.process("superlink")
        assert superlink
        apps = [p for p in superlink.children(recursive=True) if "flwr-serverapp" in _said(p)]
        assert apps
        for app in apps:
            app.kill()

    directory = deployment.run(kill)
    assert deployment.same_as_here(directory)


def _said(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:  # it has ended
        return ""


def test_a_node_that_is_killed_comes_back_and_keeps_its_model(
    deployed: Callable[[str], Deployment],
) -> None:
    """It misses the exchange that it died in; all else is its own again."""
    deployment = deployed("themis-digits")
    victim = deployment.kits[0]

    def kill(directory: Path) -> None:
        until_noise_is_trained(directory)
        supernode = victim.programs.process("supernode")
        assert supernode
        for process in (supernode, *supernode.children(recursive=True)):
            process.kill()
        victim.up()

    directory = deployment.run(kill)
    assert json.loads((directory / "run.json").read_text())["status"] == "done"
    board = pd.read_csv(directory / "main" / "leaderboard.csv")
    assert len(board) == NODES
    model = victim.folder / "vault" / directory.name / victim.config.name
    assert (model / "model-honest.safetensors").is_file()
