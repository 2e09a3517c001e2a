"""A whole deployment on this machine, over loopback: server, gate, nodes, runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING

from pudica.models.errors import RequestError
from pudica.simulations.deployment.invitation import Invitation
from pudica.simulations.deployment.kit import Kit
from pudica.simulations.deployment.organiser import OrganiserServer
from pudica.simulations.programs.calling import LOOPBACK, find_free_port
from pudica.strategies.loading import load_experiment

if TYPE_CHECKING:
    import pandas as pd

TIMED = ("seconds", "batches")
"""Metrics that depend on the timing of messages."""


class Trial:
    """A context with an organiser's server and nodes on this machine, which are stopped on exit.

    Parameters
    ----------
    folder : Path
        A new folder for all of it.
    told : callable
        Called with a line about each step.
    environment : mapping of str to str
        Further environment variables of the nodes' programs.

    Attributes
    ----------
    organiser : OrganiserServer
    kits : dict of str to Kit
        The nodes' kits by name.
    """

    def __init__(
        self,
        folder: Path,
        notify: Callable[[str], None] = lambda _: None,
        environment: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.folder = folder
        self.notify = notify
        self.environment = environment
        self.organiser = OrganiserServer.create(
            folder / "organiser", LOOPBACK, find_free_port(), notify
        )
        self.kits: dict[str, Kit] = {}

    def __enter__(self) -> Trial:
        return self

    def __exit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        for place in (*self.kits.values(), self.organiser):
            place.down()

    def up(self, names: list[str], system: str) -> None:
        """Start the organiser's server and nodes with these names.

        Raises
        ------
        RequestError
            If something does not start.
        """
        self.organiser.up()
        invitation = Invitation.read(self.organiser.folder / "invitation.yaml")
        for name in names:
            place = self.folder / "nodes" / name
            kit = Kit.create(place, name, invitation, system, trust=True, notify=self.notify)
            self.organiser.register(kit.public_key, name)
            kit.programs.environment.update(self.environment)
            self.kits[name] = kit
            kit.up()


def run_trial(
    source: str, overrides: list[str], nodes: int, folder: Path, notify: Callable[[str], None]
) -> Path:
    """Run an experiment with real nodes on this machine, and stop them all.

    Parameters
    ----------
    source, overrides : str, list of str
        As for ``pudica deploy run``.
    nodes : int
        Number of nodes, the first ones of the experiment.
    folder, notify
        As for :class:`Trial`.

    Returns
    -------
    Path
        The run's directory.

    Raises
    ------
    RequestError
        If the experiment has fewer nodes, or something does not start.
    FlowerRunFailed
        If the run did not complete.
    """
    experiment = load_experiment(source, overrides)
    names = experiment.names()
    if nodes > len(names):
        raise RequestError(
            f"--nodes {nodes}: {source} has {len(names)}; allowed: 1 to {len(names)}"
        )
    with Trial(folder, notify) as trial:
        trial.up(names[:nodes], experiment.system)
        prepared, directory = trial.organiser.prepare(source, overrides, None)
        trial.organiser.run(prepared, directory)
    return directory


def count_differences(directory: Path, here: Path) -> int:
    """Run the same experiment in one process, and count the measurements that differ.

    Seconds are not compared, nor is the number of requests that a cloud batched together. Secret
    randomness can't agree.

    Parameters
    ----------
    directory : Path
        Directory of the deployed run.
    here : Path
        New directory for the run in one process.
    """
    # Heavy imports, which nodes do not need.
    from pudica import analysis
    from pudica.simulations.engines import inprocess

    inprocess.run(load_experiment(str(directory / "experiment.yaml"), []), here)
    deployed, ours = (_count_measurements(analysis.load(run)) for run in (directory, here))
    return max(sum((deployed - ours).values()), sum((ours - deployed).values()))


def _count_measurements(frame: pd.DataFrame) -> Counter[tuple[str, ...]]:
    """Count rows as strings, which also differ if values differ in the last bit."""
    rows = frame[~frame["metric"].isin(TIMED)].drop(columns="run").astype(str)
    return Counter(rows.itertuples(index=False, name=None))
