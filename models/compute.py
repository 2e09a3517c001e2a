"""Compute settings: device, threads, precision and memory layout."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from pudica.models.errors import RequestError


class ComputeConfig(BaseModel):
    """How one node computes.

    Attributes
    ----------
    device : {"auto", "cpu", "cuda"}
        Where a node computes; ``auto`` uses a GPU if there is one.
    threads : int, in threads
        PyTorch threads while a node computes. Floating-point sums depend on them, so the same
        seed gives the same numbers only with the same ``threads``.
    bfloat16 : bool
        Autocast the forward pass to bfloat16 (GPU only).
    channels_last : bool
        Keep images and convolutions in channels-last layout (GPU only; on the CPU a model keeps
        the layout it was built with, which is channels-last for the zoo).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = Field(default=1, ge=1, le=1024)
    bfloat16: bool = False
    channels_last: bool = False


class Compute:
    """A device and its options; RequestError if ``cuda`` is requested and there is no GPU."""

    def __init__(self, config: ComputeConfig) -> None:
        present = torch.cuda.is_available()
        if config.device == "cuda" and not present:
            raise RequestError(
                "client.device: 'cuda' was asked for, but PyTorch sees no GPU here; "
                "allowed: auto, cpu (and cuda where there is one)"
            )
        self.config = config
        self.device = torch.device("cuda" if present and config.device != "cpu" else "cpu")

    @property
    def on_gpu(self) -> bool:
        """Whether the device is a GPU."""
        return self.device.type == "cuda"

    @property
    def _layout(self) -> torch.memory_format:
        return torch.channels_last if self.config.channels_last else torch.contiguous_format

    @contextmanager
    def use_threads(self) -> Iterator[None]:
        """Use the configured number of threads within the context, then restore the old one."""
        before = torch.get_num_threads()
        if before != self.config.threads:
            torch.set_num_threads(self.config.threads)
        try:
            yield
        finally:
            if torch.get_num_threads() != before:
                torch.set_num_threads(before)

    def move_batch(self, x: torch.Tensor) -> torch.Tensor:
        """Move a batch to the device; put images and feature maps (B, C, H, W) in its layout."""
        if not self.on_gpu:
            return x
        layout = self._layout if x.ndim == len("BCHW") else torch.preserve_format
        return x.to(self.device, non_blocking=True, memory_format=layout)

    def move_model(self, model: nn.Module) -> nn.Module:
        """Move a model to the device and into its layout."""
        if not self.on_gpu:
            return model
        return model.to(self.device, memory_format=self._layout)  # type: ignore[call-overload,no-any-return]

    def forward(self, model: nn.Module, x: torch.Tensor) -> torch.Tensor:
        """Return a model's, or a part's, ``model(x)`` as float32, under autocast if enabled."""
        if self.on_gpu and self.config.bfloat16:
            with torch.autocast("cuda", dtype=torch.bfloat16):
                return model(x).float()  # type: ignore[no-any-return]
        return model(x)  # type: ignore[no-any-return]
