"""Participants of user-written apps, which must hold the same public training set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from pudica.clients import protocol
from pudica.models.errors import unknown_name_error
from pudica.strategies.core.cohort import Cohort
from pudica.strategies.core.members import Member
from pudica.strategies.themis.config import ThemisConfig


@dataclass(frozen=True)
class PublicMember(Member):
    """What a participant says of its data; ``content``: a fingerprint of the training set."""

    content: str = ""

    @classmethod
    def read(cls, words: Mapping[str, Any]) -> Self:
        """Return what a participant said as it joined; errors as of :meth:`.Member.read`."""
        common = Member.read(words)
        if not common.train:
            raise ValueError("holds no training images")
        return cls(**vars(common), content=protocol.text(words, "content"))


def agree_on_training_set(cohort: Cohort, joined: dict[str, Member]) -> None:
    """Leave out participants whose public training set is another than most have."""
    sets = {name: (member.train, getattr(member, "content", "")) for name, member in joined.items()}
    wanted, _ = Counter(sets.values()).most_common(1)[0]
    for name, own in sets.items():
        if own != wanted:
            cohort.leave_out(
                name,
                f"its public training set of {own[0]} images is another than most have, of "
                f"{wanted[0]}; give all the same images in the same order",
            )
            del joined[name]


def report_unknown_names(cohort: Cohort, settings: ThemisConfig) -> None:
    """Log names in the settings that no participant has."""
    for key, names in settings.list_names().items():
        for name in names:
            if name not in cohort.nodes:
                problem = unknown_name_error("participant", name, cohort.nodes)
                cohort.recorder.event(f"{key}: {problem}")
