"""A whole deployment on this machine, over loopback: server, gate, nodes, a run."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from models.errors import RequestError
from simulations.deployment.invitation import Invitation
from simulations.deployment.kit import Kit
from simulations.deployment.organiser import Organiser
from simulations.programs.calling import LOOPBACK, free_port
from strategies.loading import load_experiment


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
    folder : Path
        A new one, in which all of it lies.
    told : callable
        Is told what is done.

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
    with ExitStack() as ends:
        organiser = Organiser.init(folder / "organiser", LOOPBACK, free_port(), told)
        ends.callback(organiser.down)
        organiser.up()
        invitation = Invitation.read(organiser.folder / "invitation.yaml")
        for name in names[:nodes]:
            place = folder / "nodes" / name
            kit = Kit.make(place, name, invitation, experiment.system, trust=True, told=told)
            organiser.register(kit.public, name)
            ends.callback(kit.down)
            kit.up()
        prepared, directory, settings = organiser.prepare(source, overrides, None)
        told("set for a deployment: " + ", ".join(settings))
        organiser.run(prepared, directory)
    return directory
