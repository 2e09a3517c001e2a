"""How good a model is, what its images hide, and how far attacks on their disguise come.

MA, VP and MM are those of Table III of paper 001, after Sharma et al. 2021. A model that is shown
other images than it was trained on normalises them as it did those (``by-model``), or they are
normalised by statistics of their own kind (``by-images``). Paper 001 does not say which; its
figures match the first.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from flwr.app import Array, RecordDict

from pudica.clients import protocol
from pudica.clients.shields.disguises import Span
from pudica.clients.shields.disguises.breaks import ATTACKS
from pudica.models.packing import select_prefix
from pudica.strategies.core.session import CLOUD
from pudica.strategies.dlmt.session import Model, Session

MEASURES = "measures"
BREAKS = "breaks"
EXAMINER = "examiner"
# The most that each number of an audit can be; SSIM with some room for rounding.
LARGEST_SIMILARITY = {
    "psnr": protocol.LARGEST,
    "ssim": 1.01,
    "psnr-standardised": protocol.LARGEST,
    "ssim-standardised": 1.01,
    "search-space": protocol.LARGEST,
}
LARGEST_OF_ATTACK = {"found": 1.0, "pixels": 1.0, "error": 255.0}
IMAGES = re.compile(r"[1-9][0-9]{0,8}")
BY_MODEL, BY_IMAGES = "by-model", "by-images"
PIXELS = Span()
DISGUISED, PLAIN, STANDARDISED = "disguised", "plain", "standardised"


@dataclass(frozen=True)
class CorrectCounts:
    """How many images a model classifies correctly, and of how many; by owner."""

    correct: dict[str, int]
    totals: dict[str, int]

    @property
    def share(self) -> float | None:
        """Of all owners' images; None if there are none."""
        total = sum(self.totals.values())
        return sum(self.correct.values()) / total if total else None

    def log(self, session: Session, stage: str, metric: str, round_: int) -> None:
        """Log each owner's accuracy, and that over all images."""
        if len(self.totals) > 1:
            for name, total in self.totals.items():
                if total:
                    value = self.correct[name] / total
                    session.log(stage, metric, value, node=name, round=round_)
        if self.share is not None:
            session.log(stage, metric, self.share, round=round_)


def count_right(
    session: Session, model: Model, part: str, view: str, name: str | None = None
) -> CorrectCounts:
    """Let all owners show a model their images.

    Parameters
    ----------
    model : Model
        Without ``normalisation`` each owner normalises by its own plain images.
    part : {"validation", "test"}
    view : {"disguised", "plain", "standardised"}
        As of :meth:`pudica.clients.dlmt.assigned.AssignedOwner.count_correct`.
    name : str or None
        The model's; by default the case's.
    """
    totals = {name: getattr(member, part) for name, member in session.members.items()}
    asked = [name for name, total in totals.items() if total and session.members[name].reports]
    if not asked:
        return CorrectCounts({}, {})
    config = {"part": part, "view": view, "model": name or session.settings.model}
    arrays = {key: Array(values) for key, values in model.items()}
    requests = dict.fromkeys(asked, session.request(config, **arrays))

    def read(name: str, content: RecordDict) -> int:
        return protocol.count_of(content, "right", totals[name])

    replies = session.cohort.send_and_receive(protocol.RIGHT, requests, read)
    session.require_min_replies(len(replies))
    return CorrectCounts(replies, {name: totals[name] for name in replies})


def measure(session: Session, model: Model) -> None:
    """Log MM, VP before and after standardising, and the owners' audits.

    Parameters
    ----------
    model : Model
        Trained on disguised images.
    """
    disguised = model["normalisation"]
    of_pixels = {**model, "normalisation": convert_normalisation(disguised, session.span, PIXELS)}
    without = {name: values for name, values in model.items() if name != "normalisation"}
    for normalised, shown in {BY_MODEL: of_pixels, BY_IMAGES: without}.items():
        share = count_right(session, shown, "test", PLAIN).share
        if share is not None:
            session.log(MEASURES, "misusability", share, normalised=normalised)
    if kept := load_examiner(session):
        name, examiner = kept
        by_model = convert_normalisation(examiner["normalisation"], PIXELS, session.span)
        views = {
            (DISGUISED, BY_MODEL): {**examiner, "normalisation": by_model},
            (DISGUISED, BY_IMAGES): {**examiner, "normalisation": disguised},
            (STANDARDISED, BY_MODEL): examiner,
        }
        for (view, normalised), shown in views.items():
            share = count_right(session, shown, "test", view, name).share
            if share is not None:
                session.log(MEASURES, "visual_privacy", 1 - share, view=view, normalised=normalised)
    _audit(session)


def convert_normalisation(normalisation: np.ndarray, of: Span, to: Span) -> np.ndarray:
    """Return mean and deviation in units of another span, (2, C).

    Parameters
    ----------
    normalisation : ndarray of shape (2, C)
        In units where the span ``of`` is [0, 1].
    of, to : Span
        Of the same values: a 7 is a 7 in both.
    """
    mean, std = normalisation.astype(np.float64)
    width, other = of.high - of.low, to.high - to.low
    return np.stack([(of.low + mean * width - to.low) / other, std * width / other]).astype(
        np.float32
    )


def keep_examiner(session: Session, model: Model) -> None:
    """Keep a model as the one that examines the disguised images of later cases."""
    session.recorder.note[EXAMINER] = session.settings.model
    # Copies: what lies in two places of a file must not share memory.
    session.recorder.arrays |= {
        f"{EXAMINER}/{name}": torch.from_numpy(values.copy()) for name, values in model.items()
    }


def load_examiner(session: Session) -> tuple[str, Model] | None:
    """Return the examiner's architecture and the model, if there is one."""
    kept = select_prefix(f"{EXAMINER}/", session.recorder.arrays)
    if not kept:
        return None
    return session.recorder.note[EXAMINER], {name: value.numpy() for name, value in kept.items()}


def _audit(session: Session) -> None:
    """Log what each owner finds of its own disguise, and the mean over owners."""
    requests = dict.fromkeys(session.members, session.request({}))
    replies = session.cohort.send_and_receive(protocol.AUDIT, requests, _read_findings)
    if len(session.members) > 1:
        for name, found in replies.items():
            _log_findings(session, name, found)
    values: dict[str, list[float]] = {}
    for found in replies.values():
        for finding, value in found.items():
            values.setdefault(finding, []).append(value)
    _log_findings(session, CLOUD, {name: sum(each) / len(each) for name, each in values.items()})


def _read_findings(_: str, content: RecordDict) -> dict[str, float]:
    names = protocol.numbers_of(content)
    return {name: protocol.number_of(content, name, *_find_bounds(name)) for name in names}


def _find_bounds(name: str) -> tuple[float, float]:
    """Return between which values a number of an audit lies; ValueError if it is none."""
    match name.split("/"):
        case [metric] if metric in LARGEST_SIMILARITY:
            return -LARGEST_SIMILARITY[metric], LARGEST_SIMILARITY[metric]
        case [attack, images, metric] if (
            attack in ATTACKS and metric in LARGEST_OF_ATTACK and IMAGES.fullmatch(images)
        ):
            return 0, LARGEST_OF_ATTACK[metric]
    raise ValueError(f"'{name}' is nothing that was to be measured")


def _log_findings(session: Session, node: str, found: Mapping[str, float]) -> None:
    for name, value in found.items():
        match name.split("/"):
            case [attack, images, metric]:
                count = int(images)
                session.log(BREAKS, metric, value, node=node, attack=attack, images=count)
            case _:
                session.log(MEASURES, name.replace("-", "_"), value, node=node)
