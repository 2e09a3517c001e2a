"""Classifiers, the noise generator, and how they are trained and computed."""

from pudica.models.compute import Compute, ComputeConfig
from pudica.models.custom import is_frozen
from pudica.models.errors import RequestError, unknown_name_error
from pudica.models.generator import GeneratorTraining, NoiseGenerator
from pudica.models.training import Training, TrainingConfig, accuracy, predict
from pudica.models.zoo import (
    build,
    build_for,
    canonical_name,
    check_available,
    describe,
    display_name,
    freeze,
    minimum_side,
    names,
)

__all__ = [
    "Compute",
    "ComputeConfig",
    "GeneratorTraining",
    "NoiseGenerator",
    "RequestError",
    "Training",
    "TrainingConfig",
    "accuracy",
    "build",
    "build_for",
    "canonical_name",
    "check_available",
    "describe",
    "display_name",
    "freeze",
    "is_frozen",
    "minimum_side",
    "names",
    "predict",
    "unknown_name_error",
]
