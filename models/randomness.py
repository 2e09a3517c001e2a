"""Every random stream of a run, derived from its seed and a purpose.

The global generators of Python, NumPy and PyTorch are never relied on, so results depend
neither on the order in which things happen nor on the process in which they happen.
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
    """Return the 63-bit seed of one purpose.

    Parameters
    ----------
    seed : int
        The seed to derive from, not negative.
    *purpose : str or int
        What the stream is for, for example ``("noise", epoch, step)``.

    Notes
    -----
    ``SeedSequence`` makes streams independent, not secret: whoever can guess ``seed`` can
    derive every purpose. A secret must be drawn from the system's randomness instead.
    """
    words = np.frombuffer(
        hashlib.blake2b(_format_purpose(purpose).encode(), digest_size=16).digest(), np.uint32
    )
    sequence = np.random.SeedSequence([seed, *words.tolist()])
    return int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1))


def numpy_generator(seed: int, *purpose: str | int) -> np.random.Generator:
    """Return the NumPy generator of one purpose; arguments as in :func:`derive`."""
    return np.random.default_rng(derive(seed, *purpose))


def torch_generator(seed: int, *purpose: str | int) -> torch.Generator:
    """Return the CPU generator of one purpose; arguments as in :func:`derive`.

    It is on the CPU on every device, so that a GPU run sees the noise of a CPU run.
    """
    return torch.Generator().manual_seed(derive(seed, *purpose))


def secret_normal(secret: int, shape: tuple[int, ...], *purpose: str | int) -> torch.Tensor:
    """Return float32 draws of N(0, 1) that only whoever knows the whole secret can repeat.

    PyTorch's generator on the CPU uses 32 bits of its seed, which can be tried out one after
    the other; here a 128-bit key goes into a counter-based generator.

    Parameters
    ----------
    secret : int
        Not negative, of any size.
    shape : tuple of int
    *purpose : str or int
        As in :func:`derive`.
    """
    digest = hashlib.blake2b(
        f"{secret}|{_format_purpose(purpose)}".encode(), digest_size=16
    ).digest()
    generator = np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))
    return torch.from_numpy(generator.standard_normal(shape, dtype=np.float32))


class SystemGenerator:
    """The operating system's randomness, with what noise needs of a NumPy generator.

    Nobody can repeat it or foretell it. The values come from 52 random bits.
    """

    def bytes(self, length: int) -> bytes:
        """Return random bytes."""
        return os.urandom(length)

    def standard_exponential(
        self, shape: tuple[int, ...], dtype: type[np.floating] = np.float64
    ) -> np.ndarray:
        """Return draws of the exponential distribution of mean 1."""
        draws: np.ndarray = -np.log(self.random(shape))
        return draws.astype(dtype)

    def standard_normal(
        self, shape: tuple[int, ...], dtype: type[np.floating] = np.float64
    ) -> np.ndarray:
        """Return draws of N(0, 1)."""
        draws: np.ndarray = torch.special.ndtri(torch.from_numpy(self.random(shape))).numpy()
        return draws.astype(dtype)

    def random(self, shape: tuple[int, ...]) -> np.ndarray:
        """Return uniform draws between 0 and 1, neither of which comes up."""
        count = int(np.prod(shape))
        bits = np.frombuffer(self.bytes(8 * count), np.uint64) >> np.uint64(12)
        # Halves between whole numbers below 2⁵² are exact.
        uniform: np.ndarray = (bits + 0.5) * 2.0**-52
        return uniform.reshape(shape)


class SecretGenerator(SystemGenerator):
    """Draws that only whoever knows a secret key can repeat, however many of them were seen.

    The bytes are ChaCha20's key stream, under a key of its own for each purpose.

    Parameters
    ----------
    key : bytes
        32 random bytes.
    purpose : bytes
        Two draws with the same key and purpose are the same.
    """

    def __init__(self, key: bytes, purpose: bytes) -> None:
        own = hashlib.blake2b(purpose, key=key, digest_size=32).digest()
        self._stream = Cipher(ChaCha20(own, bytes(16)), mode=None).encryptor()

    def bytes(self, length: int) -> bytes:
        """Return the next bytes."""
        return self._stream.update(bytes(length))


RANDOM_LAYERS = (nn.modules.dropout._DropoutNd, nn.RReLU, nn.RNNBase, nn.MultiheadAttention)


def has_random_layers(model: nn.Module) -> bool:
    """Tell whether a model has layers that draw while they train."""
    known = ("torch.nn.", "torch.fx.", "pudica.models.architectures.", "pudica.clients.shields.")
    layers = list(model.modules())
    graphs = [layer.graph for layer in layers if isinstance(layer, fx.GraphModule)]
    return (
        any(isinstance(layer, RANDOM_LAYERS) for layer in layers)
        or any(not type(layer).__module__.startswith(known) for layer in layers)
        or any("dropout" in str(node.target) for graph in graphs for node in graph.nodes)
    )


Randomness = np.random.Generator | SystemGenerator
"""What noise can be drawn from: a seed's stream, the operating system's, or a secret key's."""


@contextmanager
def temporary_seed(seed: int) -> Iterator[None]:
    """Let layers that draw from PyTorch's own generators, such as dropout, draw from a seed."""
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
    """Let a model's layers draw from a run's seed, where there are some that draw.

    Where there are none (:func:`has_random_layers`) it would cost time.
    """
    return temporary_seed(derive(seed, "layers", *purpose)) if drawing else nullcontext()


def _format_purpose(purpose: tuple[str | int, ...]) -> str:
    """Return a purpose as text; numbers and digits that look like them stay apart."""
    return "/".join(f"{type(part).__name__}:{part}" for part in purpose)
