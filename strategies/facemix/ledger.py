"""What leaves the edges in one case of FaceMix."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from typing import Any

from strategies.facemix.session import Session
from strategies.releases import Release, in_the_clear


def releases(session: Session) -> list[Release]:
    """Return every kind of release of every edge."""
    kinds = [*_of_training(session), *_of_requests(session)]
    return [dataclasses.replace(kind, node=node) for node in session.edges for kind in kinds]


def _of_training(session: Session) -> Iterator[Release]:
    settings = session.settings
    clear = in_the_clear(session.case, (), 1)
    yield dataclasses.replace(clear, what="numbers of examples", public=True)
    if settings.train != "split":
        return
    epochs = settings.training.epochs
    batch = settings.training.batch_size
    yield _crossing(session, batch, what="features", count=epochs, trained_front=True)
    for what in (
        "losses, and gradients from which labels can be computed",
        "gradients and statistics of the edge's stages",
    ):
        yield dataclasses.replace(clear, what=what, batch=batch, count=epochs, trained_front=True)


def _of_requests(session: Session) -> Iterator[Release]:
    settings = session.settings
    if settings.place != "edge":
        images = "anonymised images" if settings.anonymiser else "images"
        what = "features" if settings.place == "both" else images
        yield _crossing(session, settings.request, what=what, records="test")
    if settings.place == "cloud":
        answers = in_the_clear(session.case, (), 1, what="predictions", records="test")
        yield answers
    if settings.report:
        what = "how many images have each attribute, and how often answers were right"
        counts = in_the_clear(session.case, (), 1, what=what)
        yield dataclasses.replace(counts, records="test")


def _crossing(session: Session, batch: int, **values: Any) -> Release:
    """Return the release of what crosses to the cloud, behind the shield."""
    config = session.model.shield.config
    settings: dict[str, Any] = json.loads(config.model_dump_json())
    group = settings.get("group", 1)
    own = {
        "shape": session.model.shield.shape,
        "batch": -(-batch // group) * group,
        "shield": None if config.name == "none" else settings,
        "randomness": "none" if config.name == "none" else session.settings.keys,
        "statistics": session.experiment.data.by_training,
    }
    return dataclasses.replace(in_the_clear(session.case, (), 1), **{**own, **values})
