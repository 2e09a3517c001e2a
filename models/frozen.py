"""A model for inference only."""

from __future__ import annotations

import torch
from torch import nn


class FrozenProgram(nn.Module):
    """An exported program: its mode is fixed, and it has no weights to train.

    Parameters
    ----------
    program : nn.Module
        ``ExportedProgram.module()``.
    """

    def __init__(self, program: nn.Module) -> None:
        super().__init__()
        self.program = program.requires_grad_(False)
        self.training = False

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map (batch, channels, side, side) to logits (batch, num_classes)."""
        logits: torch.Tensor = self.program(images)
        return logits

    def train(self, mode: bool = True) -> FrozenProgram:  # noqa: ARG002
        """Do nothing: the mode was fixed at export."""
        return self
