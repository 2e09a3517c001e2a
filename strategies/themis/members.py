"""Participants of somebody's own app: whether they hold the same public training set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

from pudica.clients import protocol
from pudica.models.errors import unknown_name_error
from pudica.strategies.core.cohort import Cohort
from pudica.strategies.core.members import Member
from pudica.strategies.themis.config import ThemisConfig


@dataclass(frozen=True)
class PublicMember(Member):
    """What a participant says of the public data.

    Attributes
    ----------
    content : str
        A fingerprint of some training images and labels.
    """

    content: str = ""

    @classmethod
    def read(cls, words: Mapping[str, Any]) -> Self:
        """Return what a participant said as it joined; errors as of :meth:`.Member.read`."""
        common = Member.read(words)
        if not common.train:
            raise ValueError("holds no training images")
        values = {field.name: getattr(common, field.name) for field in fields(Member)}
        return cls(**values, content=protocol.text(words, "content"))


def agree_on_training_set(cohort: Cohort, joined: dict[str, Member]) -> None:
    """Leave out participants whose public training set is another than most have."""
    held = {name: (member.train, getattr(member, "content", "")) for name, member in joined.items()}
    wanted, _ = Counter(held.values()).most_common(1)[0]
    for name, own in held.items():
        if own != wanted:
            cohort.leave_out(
                name,
                f"its public training set of {own[0]} images is another than most have, of "
                f"{wanted[0]}; give all the same images in the same order",
            )
            del joined[name]


def report_unknown_names(cohort: Cohort, settings: ThemisConfig) -> None:
    """Say which names in the settings are nobody's who has joined."""
    order = settings.order if isinstance(settings.order, list) else []
    named = {
        "bystanders": settings.bystanders,
        "cheaters": settings.cheaters,
        "hostile": settings.hostile,
        "late": settings.late,
        "order": order,
    }
    for key, names in named.items():
        for name in names:
            if name not in cohort.nodes:
                problem = unknown_name_error("participant", name, cohort.nodes)
                cohort.recorder.event(f"{key}: {problem}")
