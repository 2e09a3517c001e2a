"""How good a model is, what its images hide, and how far attacks on their disguise come.

MA, VP and MM are those of Table III of paper 001, after Sharma et al. 2021. A model that is shown
other images than it was trained on normalises them as it did those (``by-model``), or they are
normalised by statistics of their own kind (``by-images``). Paper 001 does not say which; its
figures are those of the first.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

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
# What owners may say of their disguise, and the most it can be; SSIM with some room for rounding.
LIKENESS = {
    "psnr": protocol.LARGEST,
    "ssim": 1.01,
    "psnr-standardised": protocol.LARGEST,
    "ssim-standardised": 1.01,
    "search-space": protocol.LARGEST,
}
COMES = {"found": 1.0, "pixels": 1.0, "error": 255.0}
FEW = re.compile(r"[1-9][0-9]{0,8}")
BY_MODEL, BY_IMAGES = "by-model", "by-images"
PIXELS = Span()
DISGUISED, PLAIN, STANDARDISED = "disguised", "plain", "standardised"


@dataclass(frozen=True)
class Counted:
    """Of how many images each owner's model gets how many right."""

    right: dict[str, int]
    of: dict[str, int]

    @property
    def share(self) -> float | None:
        """Of all owners' images; None if there are none."""
        total = sum(self.of.values())
        return sum(self.right.values()) / total if total else None

    def log(self, session: Session, stage: str, metric: str, round_: int) -> None:
        """Log each owner's accuracy, and that over all images."""
        if len(self.of) > 1:
            for name, count in self.of.items():
                if count:
                    value = self.right[name] / count
                    session.log(stage, metric, value, node=name, round=round_)
        if self.share is not None:
            session.log(stage, metric, self.share, round=round_)


def count_right(
    session: Session, model: Model, part: str, view: str, name: str | None = None
) -> Counted:
    """Let all owners show a model their images.

    Parameters
    ----------
    model : Model
        Without ``normalisation`` each owner normalises by its own plain images.
    part : {"validation", "test"}
    view : {"disguised", "plain", "standardised"}
        As of :meth:`pudica.clients.dlmt.assigned.AssignedOwner.right`.
    name : str or None
        The model's; by default the case's.
    """
    owners = session.members.items()
    asked = [name for name, member in owners if getattr(member, part) and member.reports]
    config = {"part": part, "view": view, "model": name or session.settings.model}
    arrays = {key: Array(values) for key, values in model.items()}
    requests = dict.fromkeys(asked, session.request(config, **arrays)) if asked else {}
    total = {name: getattr(member, part) for name, member in session.members.items()}

    def read(name: str, content: RecordDict) -> int:
        return protocol.count_of(content, "right", total[name])

    replies = session.cohort.send_and_receive(protocol.RIGHT, requests, read)
    if asked:
        session.require_min_replies(len(replies))
    return Counted(replies, {name: total[name] for name in replies})


def measure(session: Session, model: Model) -> None:
    """Log MM, VP before and after standardising, and what the owners' audits say.

    Parameters
    ----------
    model : Model
        Trained on disguised images.
    """
    _misusability(session, model)
    if examiner := kept_examiner(session):
        _visual_privacy(session, *examiner, model["normalisation"])
    _audit(session)


def _misusability(session: Session, model: Model) -> None:
    """Log how many plain images a model gets right that was trained on disguised ones."""
    views = {
        BY_MODEL: {
            **model,
            "normalisation": converted(model["normalisation"], session.span, PIXELS),
        },
        BY_IMAGES: {name: values for name, values in model.items() if name != "normalisation"},
    }
    for normalised, shown in views.items():
        counted = count_right(session, shown, "test", PLAIN)
        if counted.share is not None:
            session.log(MEASURES, "misusability", counted.share, normalised=normalised)


def _visual_privacy(session: Session, name: str, examiner: Model, own: np.ndarray) -> None:
    """Log how many images an examiner gets wrong, as they are and standardised.

    Parameters
    ----------
    name : str
        Of the examiner's model.
    own : ndarray of shape (2, C)
        Statistics of the disguised images.
    """
    by_model = converted(examiner["normalisation"], PIXELS, session.span)
    views = {
        (DISGUISED, BY_MODEL): {**examiner, "normalisation": by_model},
        (DISGUISED, BY_IMAGES): {**examiner, "normalisation": own},
        (STANDARDISED, BY_MODEL): examiner,
    }
    for (view, normalised), shown in views.items():
        share = count_right(session, shown, "test", view, name).share
        if share is not None:
            session.log(MEASURES, "visual_privacy", 1 - share, view=view, normalised=normalised)


def converted(normalisation: np.ndarray, of: Span, to: Span) -> np.ndarray:
    """Return mean and deviation in units of another span, (2, C).

    Parameters
    ----------
    normalisation : ndarray of shape (2, C)
        Where the span ``of`` is scaled to [0, 1].
    of, to : Span
        Their values are the same: a 7 is a 7 in both.
    """
    mean, std = normalisation.astype(np.float64)
    width, other = of.high - of.low, to.high - to.low
    return np.stack([(of.low + mean * width - to.low) / other, std * width / other]).astype(
        np.float32
    )


def keep_examiner(session: Session, model: Model) -> None:
    """Remember a model as the one that examines the disguised images of later cases."""
    session.recorder.note[EXAMINER] = session.settings.model
    session.recorder.arrays |= {
        # Of its own: what lies in two places of a file must not share memory.
        f"{EXAMINER}/{name}": torch.from_numpy(values.copy())
        for name, values in model.items()
    }


def kept_examiner(session: Session) -> tuple[str, Model] | None:
    """Return the examiner's architecture and the model, if there is one."""
    kept = select_prefix(f"{EXAMINER}/", session.recorder.arrays)
    if not kept:
        return None
    return session.recorder.note[EXAMINER], {name: value.numpy() for name, value in kept.items()}


def _audit(session: Session) -> None:
    """Log what each owner says of its own disguise, and the mean over owners."""
    requests = dict.fromkeys(session.members, session.request({}))
    replies = session.cohort.send_and_receive(protocol.AUDIT, requests, _findings)
    if len(session.members) > 1:
        for name, found in replies.items():
            _log_audit(session, name, found)
    said = [*replies.values()]
    kinds = dict.fromkeys(finding for found in said for finding in found)
    mean = {kind: _mean([found[kind] for found in said if kind in found]) for kind in kinds}
    _log_audit(session, CLOUD, mean)


class Finding(NamedTuple):
    """What a number of an audit is of; of attacks with how many images."""

    metric: str
    attack: str = ""
    images: int = 0


def _findings(_: str, content: RecordDict) -> dict[Finding, float]:
    found = {}
    for name in protocol.numbers_of(content):
        finding, most = _finding(name)
        # Likenesses may be negative, distances and shares are not.
        found[finding] = protocol.number_of(content, name, 0 if finding.attack else -most, most)
    return found


def _finding(name: str) -> tuple[Finding, float]:
    """Return what a number is of, and the most that it can be."""
    match name.split("/"):
        case [metric] if metric in LIKENESS:
            return Finding(metric.replace("-", "_")), LIKENESS[metric]
        case [attack, images, what] if (
            attack in ATTACKS and what in COMES and FEW.fullmatch(images)
        ):
            return Finding(what, attack, int(images)), COMES[what]
    raise ValueError(f"'{name}' is nothing that was to be measured")


def _log_audit(session: Session, node: str, found: Mapping[Finding, float]) -> None:
    for (metric, attack, images), value in found.items():
        if attack:
            session.log(BREAKS, metric, value, node=node, attack=attack, images=images)
        else:
            session.log(MEASURES, metric, value, node=node)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
