"""Attacks by a cloud without the key: those of paper 003, and unmixing.

The attacker is the cloud. It has the model, knows how the shield works, and owns images of the
same kind (the training part), which it can protect with its own shields to learn from. It then
attacks the test part. Each attack also runs without the shield: one that fails there proves
nothing.
"""

from pudica.analysis.attacks.attribute_inference import (
    InferenceResult,
    infer_attributes,
    infer_identity,
)
from pudica.analysis.attacks.reconstruction import (
    Reconstruction,
    attribute_accuracies,
    reconstruct,
    reconstruct_unmixed,
    train_generator,
)
from pudica.analysis.attacks.unmixing import UnmixingResult, score_mixtures, score_plain, unmix
from pudica.analysis.attacks.view import View

__all__ = [
    "InferenceResult",
    "Reconstruction",
    "UnmixingResult",
    "View",
    "attribute_accuracies",
    "infer_attributes",
    "infer_identity",
    "reconstruct",
    "reconstruct_unmixed",
    "score_mixtures",
    "score_plain",
    "train_generator",
    "unmix",
]
