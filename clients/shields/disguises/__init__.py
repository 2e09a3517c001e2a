"""Shields that disguise images: obfuscations under a key, composed of steps.

:class:`Disguise` is a transform for anybody's data set; :class:`KeyedDisguise` computes it.

Examples
--------
>>> disguise = Disguise("MAT(256)+MMT(10)", key="my.key")
>>> disguised = disguise(image)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pudica.clients.shields.disguises.disguise import KeyedDisguise
from pudica.clients.shields.disguises.key import UNUSABLE, Key
from pudica.clients.shields.disguises.notation import STEPS, format_notation, parse_notation
from pudica.clients.shields.disguises.steps import Span, Step

if TYPE_CHECKING:
    from pudica.clients.shields.disguises.transform import Disguise

__all__ = [
    "STEPS",
    "UNUSABLE",
    "Disguise",
    "Key",
    "KeyedDisguise",
    "Span",
    "Step",
    "format_notation",
    "parse_notation",
]


def __getattr__(name: str) -> Any:
    """Import the transform when it is first used: torchvision takes seconds."""
    if name != "Disguise":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from pudica.clients.shields.disguises.transform import Disguise

    return Disguise
