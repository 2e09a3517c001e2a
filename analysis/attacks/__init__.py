"""Attacks by an adversary that sees what crosses: one file each.

The adversary is the cloud. It has the model, knows how the shield works, and owns images of the
same kind, which it can protect itself to learn from. Each attack also runs where nothing protects:
one that fails there proves nothing.
"""

from pudica.analysis.attacks.attribute_inference import (
    InferenceResult,
    infer_attributes,
    infer_identity,
)
from pudica.analysis.attacks.base import GOALS, Attack, Effort, Outcome
from pudica.analysis.attacks.inversion import invert
from pudica.analysis.attacks.matching import match
from pudica.analysis.attacks.reconstruction import (
    Reconstruction,
    attribute_accuracies,
    reconstruct,
    reconstruct_unmixed,
    train_generator,
)
from pudica.analysis.attacks.registry import attacks
from pudica.analysis.attacks.unmixing import UnmixingResult, score_mixtures, score_plain, unmix
from pudica.analysis.views.facemix import FacemixView
from pudica.analysis.views.gradients import Gradient, GradientsView, GradientTarget
from pudica.analysis.views.models import ModelTarget, ModelView
from pudica.analysis.views.releases import ReleasesView, Target

__all__ = [
    "GOALS",
    "Attack",
    "Effort",
    "FacemixView",
    "Gradient",
    "GradientTarget",
    "GradientsView",
    "InferenceResult",
    "ModelTarget",
    "ModelView",
    "Outcome",
    "Reconstruction",
    "ReleasesView",
    "Target",
    "UnmixingResult",
    "attacks",
    "attribute_accuracies",
    "infer_attributes",
    "infer_identity",
    "invert",
    "match",
    "reconstruct",
    "reconstruct_unmixed",
    "score_mixtures",
    "score_plain",
    "train_generator",
    "unmix",
]
