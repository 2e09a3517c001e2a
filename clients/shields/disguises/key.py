"""Keys of disguises: drawn once, kept in a file that only its owner reads."""

from __future__ import annotations

import hashlib
import math
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors import SafetensorError

from pudica.clients.shields.disguises.notation import format_notation, parse_notation
from pudica.clients.shields.disguises.steps import ImageShape, Step, Tensors
from pudica.models.errors import RequestError
from pudica.models.files import is_accessible_by_others, load_tensors, save_tensors
from pudica.models.randomness import Randomness, numpy_generator

FORMAT = "pudica-key-1"
UNUSABLE = "the key's file can't be used; this node's log says why"
"""What others are told: not what lies where."""
MAX_VALUES = 2**24


@dataclass(frozen=True)
class Key:
    """All that a disguise has of secrets, with what it is a key of.

    Attributes
    ----------
    notation : str
        As :func:`~pudica.clients.shields.disguises.notation.format_notation` has it.
    shape : tuple of int
        Of an image: channels, height, width.
    tensors : dict of str to Tensor
        By the step's number and name, as ``0/R``. Never in a message, a log or a result.
    """

    notation: str
    shape: ImageShape
    tensors: Tensors = field(repr=False)

    @classmethod
    def new(cls, notation: str, shape: ImageShape, randomness: Randomness) -> Key:
        """Draw a key.

        Parameters
        ----------
        notation : str
        shape : tuple of int
        randomness : Generator or SystemGenerator
            Seeded for an experiment; the system's for people's images.

        Raises
        ------
        RequestError
            If the notation is wrong, or does not fit images of that shape.
        """
        if len(shape) != 3 or min(shape) < 1 or math.prod(shape) > MAX_VALUES:
            raise RequestError(
                f"an image has channels, height and width, and at most {MAX_VALUES:,} values, not "
                f"{'x'.join(map(str, shape))}"
            )
        steps = parse_notation(notation)
        tensors = {
            f"{place}/{name}": tensor
            for place, step in enumerate(steps)
            for name, tensor in step.draw(shape, randomness).items()
        }
        return cls(format_notation(steps), shape, tensors)

    @classmethod
    def from_seed(cls, notation: str, shape: ImageShape, seed: int, *whose: int) -> Key:
        """Draw the key that belongs to a run's data; ``whose``: of one owner alone."""
        return cls.new(notation, shape, numpy_generator(seed, "key", *whose))

    @classmethod
    def load_for(cls, path: Path, notation: str, shape: ImageShape) -> Key:
        """Read a key that is to be for one disguise of images of one shape.

        Raises
        ------
        RequestError
            As of :meth:`load`; or it is for something else.
        """
        key = cls.load(path)
        if (key.notation, key.shape) != (notation, shape):
            sizes = ["x".join(map(str, each)) for each in (key.shape, shape)]
            raise RequestError(
                f"the key {path} ({key.fingerprint}) is for {key.notation} of images of "
                f"{sizes[0]}; wanted is {notation} of {sizes[1]}"
            )
        return key

    @property
    def steps(self) -> tuple[Step, ...]:
        """What it is a key of."""
        return parse_notation(self.notation)

    def of(self, place: int) -> Tensors:
        """Return what belongs to one step."""
        start = f"{place}/"
        return {n.removeprefix(start): t for n, t in self.tensors.items() if n.startswith(start)}

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that tell keys apart; may be shown."""
        digest = hashlib.blake2b(f"{FORMAT}|{self.notation}|{self.shape}".encode(), digest_size=8)
        for name in sorted(self.tensors):
            tensor = self.tensors[name].contiguous()
            digest.update(f"|{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
            digest.update(tensor.numpy().tobytes())
        return digest.hexdigest()

    def tag(self, text: str) -> str:
        """Return a hash of a text that nobody can make, or check a guess by, without the key.

        Empty for a key without secrets.
        """
        if not self.tensors:
            return ""
        secret = hashlib.blake2b(b"tag", digest_size=32)
        for name in sorted(self.tensors):
            secret.update(self.tensors[name].contiguous().numpy().tobytes())
        return hashlib.blake2b(text.encode(), key=secret.digest(), digest_size=16).hexdigest()

    def save(self, path: Path) -> None:
        """Write the key to a new file that only its owner may read.

        Raises
        ------
        RequestError
            If there is a file already, or none can be made there.
        """
        note = {
            "format": FORMAT,
            "notation": self.notation,
            "shape": list(self.shape),
            "fingerprint": self.fingerprint,
        }
        try:
            # Linked to its name when it is whole, and only if that is free.
            with TemporaryDirectory(dir=path.parent, prefix=".key-") as folder:
                save_tensors(Path(folder) / "key", self.tensors, note)
                os.link(Path(folder) / "key", path)
        except FileExistsError as error:
            raise RequestError(
                f"{path} exists, and a key that is overwritten is lost: choose another name"
            ) from error
        except OSError as error:
            raise RequestError(f"can't write the key {path}: {error.strerror}") from error

    @classmethod
    def load(cls, path: Path) -> Key:
        """Read a key.

        Raises
        ------
        RequestError
            If there is none, others may read it, this user may not, or it is no key.
        """
        try:
            if is_accessible_by_others(path):
                mode = stat.S_IMODE(path.stat().st_mode)
                raise RequestError(
                    f"others may read the key {path} (mode {mode:04o}); mend that with: "
                    f"chmod 600 {path}"
                )
            path.open("rb").close()
            tensors, note = load_tensors(path) or ({}, {})
            key = cls(note["notation"], tuple(note["shape"]), tensors)
            right = note["format"] == FORMAT and _is_well_formed(key)
            right = right and note["fingerprint"] == key.fingerprint
        except RequestError:
            raise
        except FileNotFoundError:
            raise RequestError(f"there is no key {path}; make one with `pudica key new`") from None
        except OSError as error:
            raise RequestError(f"can't read the key {path}: {error.strerror}") from error
        except (SafetensorError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise RequestError(f"{path} is no key of a disguise: {error}") from error
        if not right:
            raise RequestError(f"{path} is no key of a disguise, or is damaged")
        return key


def _is_well_formed(key: Key) -> bool:
    """Tell whether a key holds what one drawn anew could: names, types, shapes and values."""
    model = Key.new(key.notation, key.shape, _Zeros())  # type: ignore[arg-type]
    kinds, own = (
        {name: (t.dtype, t.shape) for name, t in each.tensors.items()} for each in (model, key)
    )
    if own != kinds or key.notation != model.notation:
        return False
    return all(step.is_valid_key(key.of(place)) for place, step in enumerate(key.steps))


class _Zeros:
    """Randomness that is none: to see what a key looks like."""

    def bytes(self, length: int) -> bytes:
        return bytes(length)

    def standard_normal(self, shape: tuple[int, ...], dtype: type = float) -> object:
        return torch.eye(shape[-1]).expand(shape).numpy().astype(dtype)
