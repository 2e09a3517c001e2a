"""Classifiers, the noise generator, and how they are trained and computed."""

from models.compute import Compute, ComputeConfig
from models.custom import is_frozen
from models.errors import RequestError, unknown
from models.generator import GeneratorTraining, NoiseGenerator
from models.training import Training, TrainingConfig, accuracy, predict
from models.zoo import (
    build,
    canonical_name,
    check_there,
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
    "canonical_name",
    "check_there",
    "describe",
    "display_name",
    "freeze",
    "is_frozen",
    "minimum_side",
    "names",
    "predict",
    "unknown",
]
