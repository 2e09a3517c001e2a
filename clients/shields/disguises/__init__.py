"""Shields that disguise images: obfuscations under a key, composed of steps.

Examples
--------
>>> key = Key.new("MAT(256)+MMT(10)", (1, 28, 28), SystemGenerator())
>>> disguised = Disguise(key).protect(images)
"""

from pudica.clients.shields.disguises.disguise import Disguise
from pudica.clients.shields.disguises.key import UNUSABLE, Key
from pudica.clients.shields.disguises.notation import STEPS, format_notation, parse_notation
from pudica.clients.shields.disguises.steps import Span, Step

__all__ = [
    "STEPS",
    "UNUSABLE",
    "Disguise",
    "Key",
    "Span",
    "Step",
    "format_notation",
    "parse_notation",
]
