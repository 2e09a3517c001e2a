"""What leaves the owners in one case of DLMT."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from pudica.strategies.core.releases import Release, in_the_clear, of_nodes
from pudica.strategies.dlmt.session import Session

BY_OWN_MODEL, BY_EXAMINER = 2, 3
"""How often models are shown test images to measure MM and VP."""


def releases(session: Session) -> list[Release]:
    """Return every kind of release of every owner."""
    return of_nodes([*_of_training(session), *_of_measurements(session)], session.members)


def _of_training(session: Session) -> Iterator[Release]:
    settings = session.settings
    clear = in_the_clear(session.case, session.image, 1)
    images = _images(session)
    yield dataclasses.replace(clear, what="numbers of examples", public=True)
    yield dataclasses.replace(clear, what="statistics of channels")
    if settings.train == "central":
        yield dataclasses.replace(clear, what=images)
        yield dataclasses.replace(clear, what="labels", public=True)
    else:
        models = f"models trained on {images}"
        trained = dataclasses.replace(clear, what=models, shape=(), count=settings.rounds)
        dp = settings.dp
        yield (
            trained
            if dp is None
            else dataclasses.replace(
                trained,
                dp=dp,
                randomness=dp.noise,
                sampling=f"Poisson, {settings.training.batch_size} examples expected",
            )
        )


def _images(session: Session) -> str:
    if session.settings.shield:
        return f"images disguised by {session.settings.shield}"
    return "images disguised beforehand" if session.disguised_before else "images"


def _of_measurements(session: Session) -> Iterator[Release]:
    settings = session.settings
    answers = in_the_clear(session.case, (), 1, what="number of right answers")
    times = sum(settings.evaluates(done + 1) for done in range(settings.rounds))
    measured = settings.measures and settings.shield is not None
    examined = session.experiment.dlmt.examining() is not None
    extra = BY_OWN_MODEL + BY_EXAMINER * examined if measured else 0
    yield dataclasses.replace(answers, records="test", count=times + extra)
    if any(member.validation for member in session.members.values()):
        yield dataclasses.replace(answers, records="validation", count=times)
    if measured:
        what = "how far attacks on the disguise come"
        yield dataclasses.replace(answers, what=what)
        what = "how like plain images disguised ones are"
        yield dataclasses.replace(answers, what=what, records="test")
