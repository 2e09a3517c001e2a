"""What leaves the edges in one case of FaceMix."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from typing import Any

from pudica.clients.shields.mixing import group_size, padded_count
from pudica.strategies.core.releases import Release, in_the_clear, of_nodes
from pudica.strategies.facemix.session import Session


def releases(session: Session) -> list[Release]:
    """Return every kind of release of every edge."""
    return of_nodes([*_of_training(session), *_of_requests(session)], session.members)


def _of_training(session: Session) -> Iterator[Release]:
    settings = session.settings
    if settings.train != "split":
        return
    epochs, batch = settings.training.epochs, settings.training.batch_size
    clear = in_the_clear(session.case, (), batch, count=epochs, trained_front=True)
    yield in_the_clear(session.case, (), 1, what="numbers of examples", public=True)
    yield _crossing(session, batch, what="features", count=epochs, trained_front=True)
    for what in (
        "losses, and gradients from which labels can be computed",
        "gradients and statistics of the edge's stages",
    ):
        yield dataclasses.replace(clear, what=what)


def _of_requests(session: Session) -> Iterator[Release]:
    settings = session.settings
    clear = in_the_clear(session.case, (), 1, records="served")
    yield dataclasses.replace(clear, what="numbers of images, names of attributes", public=True)
    if settings.place != "edge":
        what = "features" if settings.place == "both" else _images(session)
        yield _crossing(session, settings.request, what=what, records="served")
    if settings.place == "cloud" and group_size(settings.around) == 1:
        yield dataclasses.replace(clear, what="predictions")
    if settings.report:
        what = "how many images have each attribute, and how often answers were right"
        yield dataclasses.replace(clear, what=what)


def _images(session: Session) -> str:
    if session.settings.anonymiser:
        return "anonymised images"
    return "images disguised beforehand" if session.disguised_before else "images"


def _crossing(session: Session, batch: int, **values: Any) -> Release:
    """Return the release of what crosses to the cloud, behind the shield."""
    config = session.model.shield.config
    settings: dict[str, Any] = json.loads(config.model_dump_json())
    drawn = config.name not in ("none", "low-resolution")
    own = {
        "shape": session.model.shield.shape,
        "batch": padded_count(batch, config),
        "shield": None if config.name == "none" else settings,
        "randomness": session.settings.keys if drawn else "none",
    }
    return dataclasses.replace(in_the_clear(session.case, (), 1), **{**own, **values})
