"""What the cloud can make of what it sees, without a key: the attacks of paper 003, and one more.

The attacker is the cloud. It has the model, knows how the shield works, and has images of its own
of the same kind (the training part), which it can put behind shields of its own to learn from. It
then attacks the test part. Each attack is also run with the shield left out: one that does not
succeed there proves nothing.
"""

from analysis.attacks.guessing import Guess, guess_attributes, guess_identity
from analysis.attacks.reconstruction import Rebuilt, reconstruct, redrawn, trained_generator
from analysis.attacks.separation import Separated, left_mixed, separate
from analysis.attacks.view import View

__all__ = [
    "Guess",
    "Rebuilt",
    "Separated",
    "View",
    "guess_attributes",
    "guess_identity",
    "left_mixed",
    "reconstruct",
    "redrawn",
    "separate",
    "trained_generator",
]
