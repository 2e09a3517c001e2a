"""Random streams, each derived from a run's seed and a purpose.

The global generators of Python, NumPy and PyTorch are never used, so results depend neither on
the order of events nor on the process they happen in.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from torch import fx, nn


def derive(seed: int, *purpose: str | int) -> int:
    """Return the 63-bit seed of one purpose, for example ``("noise", epoch, step)``.

    ``SeedSequence`` makes streams independent, not secret: whoever can guess ``seed``, which is not
    negative, can derive every stream. A secret must be drawn from the system's randomness instead.
    """
    words = np.frombuffer(_digest(_format_purpose(purpose)), np.uint32)
    sequence = np.random.SeedSequence([seed, *words.tolist()])
    return int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1))


def numpy_generator(seed: int, *purpose: str | int) -> np.random.Generator:
    """Return the NumPy generator for one purpose; arguments as in :func:`derive`."""
    return np.random.default_rng(derive(seed, *purpose))


def torch_generator(seed: int, *purpose: str | int) -> torch.Generator:
    """Return the CPU generator for one purpose; arguments as in :func:`derive`.

    It runs on the CPU whatever the device, so that a GPU run sees the same noise as a CPU run.
    """
    return torch.Generator().manual_seed(derive(seed, *purpose))


def secret_normal(secret: int, shape: tuple[int, ...], *purpose: str | int) -> torch.Tensor:
    """Return float32 draws of N(0, 1) that can be repeated only with the whole secret.

    PyTorch's CPU generator uses 32 bits of its seed, few enough to try them all. Here a 128-bit
    key seeds a counter-based generator. The secret is not negative, and of any size.
    """
    key = int.from_bytes(_digest(f"{secret}|{_format_purpose(purpose)}"), "little")
    generator = np.random.Generator(np.random.Philox(key=key))
    return torch.from_numpy(generator.standard_normal(shape, dtype=np.float32))


class SystemGenerator:
    """The operating system's randomness, with the methods of a NumPy generator that noise needs.

    Nobody can repeat or predict it. Each value comes from 52 random bits.
    """

    def bytes(self, length: int) -> bytes:
        """Return random bytes."""
        return os.urandom(length)

    def standard_exponential(
        self, shape: tuple[int, ...], dtype: type[np.floating] = np.float64
    ) -> np.ndarray:
        """Return draws from the exponential distribution with mean 1."""
        draws: np.ndarray = -np.log(self.random(shape))
        return draws.astype(dtype)

    def standard_normal(
        self, shape: tuple[int, ...], dtype: type[np.floating] = np.float64
    ) -> np.ndarray:
        """Return draws from N(0, 1)."""
        draws: np.ndarray = torch.special.ndtri(torch.from_numpy(self.random(shape))).numpy()
        return draws.astype(dtype)

    def random(self, shape: tuple[int, ...]) -> np.ndarray:
        """Return uniform draws from the open interval (0, 1)."""
        count = int(np.prod(shape))
        bits = np.frombuffer(self.bytes(8 * count), np.uint64) >> np.uint64(12)
        # A half added to an integer below 2⁵² is exact.
        uniform: np.ndarray = (bits + 0.5) * 2.0**-52
        return uniform.reshape(shape)


class SecretGenerator(SystemGenerator):
    """Draws that can be repeated only with a secret key, however many of them are known.

    The bytes are ChaCha20's key stream under a separate key for each purpose, derived from ``key``,
    32 random bytes.
    """

    def __init__(self, key: bytes, purpose: bytes) -> None:
        stream_key = hashlib.blake2b(purpose, key=key, digest_size=32).digest()
        self._stream = Cipher(ChaCha20(stream_key, bytes(16)), mode=None).encryptor()

    def bytes(self, length: int) -> bytes:
        """Return the next bytes."""
        return self._stream.update(bytes(length))


RANDOM_LAYERS = (nn.modules.dropout._DropoutNd, nn.RReLU, nn.RNNBase, nn.MultiheadAttention)


def has_random_layers(model: nn.Module) -> bool:
    """Tell whether a model has layers that draw random numbers while they train."""
    known = ("torch.nn.", "torch.fx.", "pudica.models.architectures.", "pudica.clients.shields.")
    for layer in model.modules():
        if isinstance(layer, RANDOM_LAYERS) or not type(layer).__module__.startswith(known):
            return True
        steps = layer.graph.nodes if isinstance(layer, fx.GraphModule) else ()
        if any("dropout" in str(step.target) for step in steps):
            return True
    return False


Randomness = np.random.Generator | SystemGenerator
"""Sources of noise: a seeded stream, the operating system's, or one under a secret key."""


@contextmanager
def temporary_seed(seed: int) -> Iterator[None]:
    """Seed PyTorch's global generators, which dropout uses, within the context only."""
    gpu = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=gpu):
        # torch.manual_seed would also reset the generators of every accelerator.
        torch.default_generator.manual_seed(seed)
        if gpu:
            torch.cuda.manual_seed(seed)
        yield


def seed_random_layers(
    drawing: bool, seed: int, *purpose: str | int
) -> AbstractContextManager[None]:
    """Seed a model's random layers for one purpose of a run, if it is ``drawing`` at all.

    See :func:`has_random_layers`; without random layers, seeding would only cost time.
    """
    return temporary_seed(derive(seed, "layers", *purpose)) if drawing else nullcontext()


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def _format_purpose(purpose: tuple[str | int, ...]) -> str:
    """Return a purpose as text in which the number 1 and the text "1" differ."""
    return "/".join(f"{type(part).__name__}:{part}" for part in purpose)
