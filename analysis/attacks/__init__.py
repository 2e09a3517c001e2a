"""What the cloud can make of what it sees, without a key: the attacks of paper 003, and one more.

The attacker is the cloud. It has the model, knows how the shield works, and has images of its own
of the same kind (the training part), which it can put behind shields of its own to learn from. It
then attacks the test part. Each attack is also run with the shield left out: one that does not
succeed there proves nothing.
"""

from pudica.analysis.attacks.guessing import Guess, guess_attributes, guess_identity
from pudica.analysis.attacks.reconstruction import (
    Rebuilt,
    reconstruct,
    redrawn,
    told_of,
    trained_generator,
)
from pudica.analysis.attacks.separation import Separated, left_mixed, left_plain, separate
from pudica.analysis.attacks.view import View

__all__ = [
    "Guess",
    "Rebuilt",
    "Separated",
    "View",
    "guess_attributes",
    "guess_identity",
    "left_mixed",
    "left_plain",
    "reconstruct",
    "redrawn",
    "separate",
    "told_of",
    "trained_generator",
]
