"""The systems there are: ours, and those that other packages bring.

A system is one object, which names its parts in every layer. Another package adds one without a
change to ours: it defines a :class:`System` and names it as an entry point of the group
``pudica.systems``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from logging import WARN
from pkgutil import resolve_name
from typing import Any

from flwr.common.logger import log

from pudica.models.plugins import load_plugins

GROUP = "pudica.systems"


@dataclass(frozen=True)
class System:
    """One way to learn together, or to compute for each other.

    Every part but ``name`` is an object, or where to find it: ``package.module:attribute``, which
    is imported once it is needed.

    Attributes
    ----------
    name : str
        As ``system:`` in experiments.
    experiment : type of Experiment
        The schema of its experiments, with a section for the system.
    run : callable
        ``run(cohort, experiment)`` runs a whole experiment with nodes that are there.
    assignment : type of Assignment
        What a node is told when it joins.
    role : callable
        ``role(vault, assignment)`` makes a node of it.
    roles : tuple of type of Role
        What ``role`` may return; their handlers answer messages.
    tables : callable or None
        ``tables(runs)`` returns DataFrames by title, for ``pudica show``.
    figures : callable or None
        ``figures(run)`` yields names and matplotlib figures, for ``pudica plot``; None instead of
        a figure where nothing was measured.
    methods : callable or None
        ``methods(run)`` yields a row for each case that is measured, for
        :func:`pudica.analysis.compare`: ``case``, ``method`` (what protects, in few words),
        ``accuracy`` (per cent), ``edge_mmacs`` (million multiplications of an image).
    targets : callable or None
        ``targets(run)`` returns, by case in which something crosses, what opens its targets for
        ``pudica attack``: ``open(run, case, images, seed, replay)`` returns views of
        :mod:`pudica.analysis.views`, or views with the images behind them, ``images`` at most.
        ``replay(note)`` runs the case once more and calls ``note`` with each exchange.
    experiments : Path, str or None
        A folder of YAML experiments that come with it.
    """

    name: str
    experiment: Any
    run: Any
    assignment: Any
    role: Any
    roles: Any
    tables: Any = None
    figures: Any = None
    methods: Any = None
    targets: Any = None
    experiments: Any = None

    def part(self, name: str) -> Any:
        """Return one of its parts, imported if need be."""
        value = getattr(self, name)
        return resolve_name(value) if isinstance(value, str) and ":" in value else value


OURS = (
    System(
        name="dlmt",
        experiment="pudica.strategies.dlmt.experiment:DlmtExperiment",
        run="pudica.strategies.dlmt.system:learn_disguised",
        assignment="pudica.clients.assignments:OwnerAssignment",
        role="pudica.clients.dlmt.assigned:AssignedOwner",
        roles="pudica.clients.dlmt.assigned:ROLES",
        tables="pudica.analysis.dlmt:tables",
        figures="pudica.analysis.dlmt:figures",
        methods="pudica.analysis.dlmt:methods",
        targets="pudica.analysis.views.dlmt:targets",
    ),
    System(
        name="facemix",
        experiment="pudica.strategies.facemix.experiment:FacemixExperiment",
        run="pudica.strategies.facemix.system:infer_mixed",
        assignment="pudica.clients.assignments:InferenceAssignment",
        role="pudica.clients.facemix.assigned:AssignedEdge",
        roles="pudica.clients.facemix.assigned:ROLES",
        tables="pudica.analysis.facemix:tables",
        figures="pudica.analysis.facemix:figures",
        methods="pudica.analysis.facemix:methods",
        targets="pudica.analysis.views.facemix:targets",
    ),
    System(
        name="split",
        experiment="pudica.strategies.split.experiment:SplitExperiment",
        run="pudica.strategies.split.system:learn",
        assignment="pudica.clients.assignments:EdgeAssignment",
        role="pudica.clients.split.assigned:AssignedEdge",
        roles="pudica.clients.split.assigned:ROLES",
        tables="pudica.analysis.split:tables",
        figures="pudica.analysis.split:figures",
        methods="pudica.analysis.split:methods",
        targets="pudica.analysis.views.split:targets",
    ),
    System(
        name="themis",
        experiment="pudica.strategies.themis.experiment:ThemisExperiment",
        run="pudica.strategies.themis.competition:compete",
        assignment="pudica.clients.assignments:ParticipantAssignment",
        role="pudica.clients.themis.assigned:AssignedParticipant",
        roles="pudica.clients.themis.assigned:ROLES",
        tables="pudica.analysis.themis:tables",
        figures="pudica.analysis.themis:figures",
        methods="pudica.analysis.themis:methods",
        targets="pudica.analysis.views.themis:targets",
    ),
)


@cache
def systems() -> Mapping[str, System]:
    """Return all systems by name, ours first.

    What a package brings that can't be loaded, is no System, or has a name that is taken is logged
    and left out: the others work without.
    """
    known = {system.name: system for system in OURS}
    for remark in load_plugins(GROUP, System, known, lambda system: system.name):
        log(WARN, "%s", remark)
    return known
