"""Disguises of images, composed of steps: obfuscations under a key.

:class:`.KeyedDisguise` computes them; :class:`.Disguise` is the transform for anybody's data set.
"""

from pudica.clients.shields.disguises.disguise import (
    KeyedDisguise,
    describe_loss,
    require_invertible,
)
from pudica.clients.shields.disguises.key import UNUSABLE, Key
from pudica.clients.shields.disguises.notation import STEPS, format_notation, parse_notation
from pudica.clients.shields.disguises.steps import Span, Step

__all__ = [
    "STEPS",
    "UNUSABLE",
    "Key",
    "KeyedDisguise",
    "Span",
    "Step",
    "describe_loss",
    "format_notation",
    "parse_notation",
    "require_invertible",
]
