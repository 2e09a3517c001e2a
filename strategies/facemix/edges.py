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
    """What an edge of somebody's own app says of itself."""

    attributes: str = ""
    """What its questions are called, a line each; empty where it has no labels."""
    group: int = 1
    """Images that it mixes with each other."""
    lasting: bool = False
    """Whether its process remembers what it was asked before."""

    @classmethod
    def read(cls, words: Words) -> Self:
        """Return what an edge said; errors as of :meth:`.Member.read`."""
        return cls(
            **vars(Member.read(words)),
            attributes=protocol.text(words, "attributes"),
            group=protocol.whole(words, "group", 1, MOST_GROUP),
            lasting=bool(protocol.whole(words, "lasting", 0, 1)),
        )


def check_attributes(theirs: str, ours: list[str]) -> None:
    """Raise ValueError if an edge has other attributes than the model: logits have no names.

    Parameters
    ----------
    theirs : str
        Their names, a line each.
    """
    if theirs == "\n".join(ours):
        return
    names = theirs.split("\n", len(ours))
    for place, (name, own) in enumerate(zip_longest(names, ours, fillvalue="none"), 1):
        if name != own:
            raise ValueError(f"its attribute {place} is {name[:99]}, the model's is {own}")


def check_groups(member: Member, settings: FacemixConfig) -> None:
    """Raise ValueError if an edge sends incomplete groups, and nothing may fill them."""
    sizes = {member.test % settings.request}
    if settings.train == "split":
        sizes |= set(protocol.batch_sizes(member.train, settings.training.batch_size))
    for count in sorted(sizes):
        count_missing(count, settings.around)
