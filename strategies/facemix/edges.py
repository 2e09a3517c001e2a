"""What an edge says as it joins, and whether the model is for it."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import zip_longest
from typing import Self

from pudica.clients import protocol
from pudica.clients.shields.decoys import count_missing
from pudica.strategies.core.members import Member, Words
from pudica.strategies.facemix.config import FacemixConfig

MOST_GROUP = 1024


@dataclass(frozen=True)
class EdgeMember(Member):
    """What an edge of somebody's own app says of itself.

    Attributes
    ----------
    attributes : str
        What its questions are called, a line each; empty where it has no labels.
    group : int
        Images that it mixes with each other.
    lasting : bool
        Whether its process remembers what it was asked before.
    """

    attributes: str = ""
    group: int = 1
    lasting: bool = False

    @classmethod
    def read(cls, words: Words) -> Self:
        """Return what an edge said; errors as of :meth:`.Member.read`."""
        return cls(
            **vars(Member.read(words)),
            attributes=protocol.text(words, "attributes"),
            group=protocol.whole(words, "group", 1, MOST_GROUP),
            lasting=bool(protocol.whole(words, "lasting", 0, 1)),
        )


def check_attributes(told: str, ours: list[str]) -> None:
    """See that an edge has the model's attributes: logits have no names, only places.

    Parameters
    ----------
    told : str
        Their names, a line each.

    Raises
    ------
    ValueError
        It has others.
    """
    if told == "\n".join(ours):
        return
    theirs = told.split("\n", len(ours))
    for place, (name, own) in enumerate(zip_longest(theirs, ours, fillvalue="none"), 1):
        if name != own:
            raise ValueError(f"its attribute {place} is {name[:99]}, the model's is {own}")


def check_groups(member: Member, settings: FacemixConfig) -> None:
    """See that what an edge sends are whole groups, where nothing is to fill them.

    Raises
    ------
    ValueError
        They are not.
    """
    sizes = {member.test % settings.request}
    if settings.train == "split":
        sizes |= set(protocol.batch_sizes(member.train, settings.training.batch_size))
    for count in sorted(sizes):
        count_missing(count, settings.around)
