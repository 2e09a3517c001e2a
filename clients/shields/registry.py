"""The shields there are: ours, and those that other packages bring.

Another package adds one without a change to ours: it derives a class from :class:`.Shield`, or
from :class:`.Mechanism` if it has a guarantee, and names the class as an entry point of the group
``pudica.shields``. Its ``schema`` has a ``name`` with a default.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from logging import WARN

from pudica.clients.shields.base import Shield
from pudica.clients.shields.element_level import BatchNormLaplace, NormGaussian, PixelLaplace
from pudica.clients.shields.integers import ClipGaussian, ClipLaplace, Counts
from pudica.clients.shields.mixing import Mixing
from pudica.clients.shields.no_peek import NoPeek
from pudica.clients.shields.obfuscation import AdditiveNoise, LowResolution, NoShield, Quantise
from pudica.models.errors import unknown_name_error
from pudica.models.plugins import load_plugins

GROUP = "pudica.shields"


def read_name(kind: type[Shield]) -> str:
    """Return the name of a shield in settings; ValueError if its schema has no default for it."""
    name = kind.schema.model_fields["name"].default
    if not isinstance(name, str):
        raise ValueError("its schema has no default for name")
    return name


SHIELDS: Mapping[str, type[Shield]] = {
    read_name(kind): kind
    for kind in (
        BatchNormLaplace,
        ClipGaussian,
        ClipLaplace,
        Counts,
        LowResolution,
        Mixing,
        AdditiveNoise,
        NoPeek,
        NoShield,
        NormGaussian,
        PixelLaplace,
        Quantise,
    )
}
"""The class of each of our shields, by name; :func:`find_shield` knows those of others, too."""


@cache
def load_shields() -> Mapping[str, type[Shield]]:
    """Return all shields by their name, ours first.

    What a package brings that can't be loaded, is no subclass of Shield, or has no name or one
    that is taken is logged and left out: the others work without.
    """
    known = dict(SHIELDS)
    for remark in load_plugins(GROUP, Shield, known, read_name, subclasses=True):
        from flwr.common.logger import log  # slow to import

        log(WARN, "%s", remark)
    return known


def find_shield(name: str) -> type[Shield]:
    """Return the class of a shield by its name; RequestError if there is none of that name."""
    # For ours no entry point is read, which takes time.
    found = SHIELDS.get(name) or load_shields().get(name)
    if found is None:
        raise unknown_name_error("shield", name, load_shields())
    return found
