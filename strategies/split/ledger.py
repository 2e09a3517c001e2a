"""What leaves the devices in one case of split learning."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from typing import Any

from pudica.clients.assignments import Report
from pudica.clients.shields.counts import CountsConfig
from pudica.clients.shields.front import Front
from pudica.strategies.core.releases import Release, in_the_clear, of_nodes
from pudica.strategies.split.fronts import Fronts
from pudica.strategies.split.reporting import reports
from pudica.strategies.split.session import Session

SHUFFLED = "every example once an epoch, in random order: no amplification is claimed"
ONCE = "every example once"
BY_THE_WAY = {"average": "front gradients", "handoff": "front weights"}
"""What else of a front that learns is sent, by how the fronts are kept equal."""
ANSWERS = "number of right answers"


def releases(session: Session, fronts: Fronts, shape: tuple[int, ...]) -> list[Release]:
    """Return every kind of release of every device.

    Parameters
    ----------
    fronts : Fronts
    shape : tuple of int
        Of one example's activation.
    """
    kinds = [*_of_training(session, fronts, shape), *_of_test(session, fronts, shape)]
    return of_nodes(kinds, session.members)


def _of_training(session: Session, fronts: Fronts, shape: tuple[int, ...]) -> Iterator[Release]:
    settings, count = session.settings, session.settings.releases
    clear = _clear(session, count=count)
    yield _shielded(session, fronts, shape, what="smashed data", count=count)
    yield dataclasses.replace(clear, what="labels", public=True)
    yield dataclasses.replace(clear, what="numbers of examples", count=1, public=True)
    if fronts.learns and settings.front in BY_THE_WAY:
        statistics = any(True for _ in fronts.front.buffers())
        what = BY_THE_WAY[settings.front] + (" and statistics" if statistics else "")
        yield dataclasses.replace(clear, what=what)


def _of_test(session: Session, fronts: Fronts, shape: tuple[int, ...]) -> Iterator[Release]:
    settings = session.settings
    clear = _clear(session)
    for part, report in reports(settings, session.shield).items():
        yield dataclasses.replace(_answers(session, report), records=part)
    if "cloud" in settings.classifiers:
        shielded = _shielded(session, fronts, shape, what="test features", records="test")
        yield dataclasses.replace(shielded, mode="eval", sampling=ONCE)
        if settings.plain_to_cloud:
            what = "test features without noise"
            yield dataclasses.replace(clear, what=what, records="test", public=False)


def _answers(session: Session, report: Report) -> Release:
    """Return the release of what devices say of their held-out images."""
    answers = _clear(session, what=ANSWERS, count=report.count)
    if report.epsilon is None:
        return answers
    shield = CountsConfig(epsilon=report.epsilon).model_dump()
    noisy: dict[str, Any] = {"shield": shield, "shape": (2,), "batch": 1, "integers": True}
    return dataclasses.replace(answers, **noisy, randomness="secret")


def _shielded(session: Session, fronts: Fronts, shape: tuple[int, ...], **values: Any) -> Release:
    shield = session.shield
    settings: dict[str, Any] = json.loads(shield.model_dump_json())
    own: dict[str, Any] = {
        "shape": shape,
        "shield": None if shield.name == "none" else settings,
        "trained_front": fronts.learns,
        "sampling": ONCE if session.settings.releases == 1 else SHUFFLED,
        "randomness": "none" if settings.get("epsilon") is None else session.settings.noise,
        "integers": isinstance(fronts.front, Front) and fronts.front.shield.grid is not None,
    }
    return dataclasses.replace(_clear(session), **{**own, **values})


def _clear(session: Session, **values: Any) -> Release:
    """Return a release of training records in the clear, of no node yet."""
    statistics = session.experiment.data.uses_training_statistics
    batch = session.settings.batch_size
    return in_the_clear(session.case, (), batch, **{"statistics": statistics, **values})
