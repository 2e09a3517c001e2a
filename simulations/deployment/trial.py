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
from pudica.simulations.deployment.organiser import Organiser
from pudica.simulations.programs.calling import LOOPBACK, free_port
from pudica.strategies.loading import load_experiment

if TYPE_CHECKING:
    import pandas as pd

TIMED = ("seconds", "batches")
"""What is measured that follows from when messages come."""


class Trial:
    """An organiser and nodes on this machine; a context, at whose end all of them end.

    Parameters
    ----------
    folder : Path
        A new one, in which all of it lies.
    told : callable
        Is told what is done.
    environment : mapping of str to str
        Of nodes' programs, beside what they all have.

    Attributes
    ----------
    organiser : Organiser
    kits : dict of str to Kit
        By name.
    """

    def __init__(
        self,
        folder: Path,
        told: Callable[[str], None] = lambda _: None,
        environment: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.folder = folder
        self.told = told
        self.environment = environment
        self.organiser = Organiser.init(folder / "organiser", LOOPBACK, free_port(), told)
        self.kits: dict[str, Kit] = {}

    def __enter__(self) -> Trial:
        return self

    def __exit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        for place in (*self.kits.values(), self.organiser):
            place.down()

    def up(self, names: list[str], system: str) -> None:
        """Start the organiser's programs and nodes of these names.

        Raises
        ------
        RequestError
            Something does not come up.
        """
        self.organiser.up()
        invitation = Invitation.read(self.organiser.folder / "invitation.yaml")
        for name in names:
            place = self.folder / "nodes" / name
            kit = Kit.make(place, name, invitation, system, trust=True, told=self.told)
            self.organiser.register(kit.public, name)
            kit.programs.environment.update(self.environment)
            self.kits[name] = kit
            kit.up()


def attempt(
    source: str, overrides: list[str], nodes: int, folder: Path, told: Callable[[str], None]
) -> Path:
    """Run an experiment with real nodes on this machine, and end them all.

    Parameters
    ----------
    source, overrides : str, list of str
        As of ``pudica deploy run``.
    nodes : int
        The experiment's first so many.
    folder, told
        As of :class:`Trial`.

    Returns
    -------
    Path
        The run's directory.

    Raises
    ------
    RequestError
        There are not so many nodes in the experiment, or something does not come up.
    FlowerRunFailed
        The run did not complete.
    """
    experiment = load_experiment(source, overrides)
    names = experiment.names()
    if nodes > len(names):
        raise RequestError(
            f"--nodes {nodes}: {source} has {len(names)}; allowed: 1 to {len(names)}"
        )
    with Trial(folder, told) as trial:
        trial.up(names[:nodes], experiment.system)
        prepared, directory = trial.organiser.prepare(source, overrides, None)
        trial.organiser.run(prepared, directory)
    return directory


def differences(directory: Path, here: Path) -> int:
    """Run the same in one process, and return in how many measurements the two differ.

    Seconds do not count, nor does how many requests came together at a cloud. Nothing that is
    drawn in secret can be the same.

    Parameters
    ----------
    directory : Path
        Of the deployed run.
    here : Path
        A new one, for the other.
    """
    # Heavy, and of no use to nodes.
    from pudica import analysis
    from pudica.simulations.engines import inprocess

    inprocess.run(load_experiment(str(directory / "experiment.yaml"), []), here)
    deployed, ours = (_measurements(analysis.load(run)) for run in (directory, here))
    return max(sum((deployed - ours).values()), sum((ours - deployed).values()))


def _measurements(frame: pd.DataFrame) -> Counter[tuple[str, ...]]:
    """Return rows as texts, which tell apart what differs in the last bit."""
    told = frame[~frame["metric"].isin(TIMED)].drop(columns="run").astype(str)
    return Counter(told.itertuples(index=False, name=None))
