"""Keys of disguises: drawn once, kept in a file that only its owner can read."""

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
from pudica.models.packing import select_prefix
from pudica.models.randomness import Randomness, numpy_generator

FORMAT = "pudica-key-1"
UNUSABLE = "the key's file can't be used; this node's log says why"
"""The message for others, which does not reveal paths."""
MAX_VALUES = 2**24


@dataclass(frozen=True)
class Key:
    """All secrets of a disguise, with the disguise and the image shape (C, H, W) they are for.

    Attributes
    ----------
    notation : str
        From :func:`.format_notation`.
    tensors : dict of str to Tensor
        Secrets by the step's number and their name, such as ``0/R``. They never appear in a
        message, a log or a result.
    """

    notation: str
    shape: ImageShape
    tensors: Tensors = field(repr=False)

    @classmethod
    def new(cls, notation: str, shape: ImageShape, randomness: Randomness) -> Key:
        """Draw a key, seeded for an experiment, from the system's randomness for people's images.

        RequestError if the notation is invalid, or does not fit images of that shape.
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
        """Draw the key for a run's data; ``whose`` selects the key of a single owner."""
        return cls.new(notation, shape, numpy_generator(seed, "key", *whose))

    @classmethod
    def load_for(cls, path: Path, notation: str, shape: ImageShape) -> Key:
        """Read a key for this disguise and shape; RequestError as :meth:`load`, or if it isn't."""
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
        """The steps that the key is for."""
        return parse_notation(self.notation)

    def of(self, place: int) -> Tensors:
        """Return the secrets of one step."""
        return select_prefix(f"{place}/", self.tensors)

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that identify the key; not secret."""
        digest = hashlib.blake2b(f"{FORMAT}|{self.notation}|{self.shape}".encode(), digest_size=8)
        for name in sorted(self.tensors):
            tensor = self.tensors[name].contiguous()
            digest.update(f"|{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
            digest.update(tensor.numpy().tobytes())
        return digest.hexdigest()

    def tag(self, text: str) -> str:
        """Return a hash of a text that can't be made, or used to test a guess, without the key.

        Empty for a key without secrets.
        """
        if not self.tensors:
            return ""
        secret = hashlib.blake2b(b"tag", digest_size=32)
        for name in sorted(self.tensors):
            secret.update(self.tensors[name].contiguous().numpy().tobytes())
        return hashlib.blake2b(text.encode(), key=secret.digest(), digest_size=16).hexdigest()

    def save(self, path: Path | str) -> None:
        """Write the key to a new file that only its owner may read.

        RequestError if the file already exists, or can't be created.
        """
        path = Path(path)
        note = {
            "format": FORMAT,
            "notation": self.notation,
            "shape": list(self.shape),
            "fingerprint": self.fingerprint,
        }
        try:
            # Linked to its name once it is complete, and only if the name is free.
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
    def load(cls, path: Path | str) -> Key:
        """Read a key.

        RequestError if the file is missing, readable by others, not readable by this user, or not a
        key.
        """
        path = Path(path)
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
            is_intact = (
                note["format"] == FORMAT
                and _is_well_formed(key)
                and note["fingerprint"] == key.fingerprint
            )
        except RequestError:
            raise
        except FileNotFoundError:
            raise RequestError(f"there is no key {path}; make one with `pudica key new`") from None
        except OSError as error:
            raise RequestError(f"can't read the key {path}: {error.strerror}") from error
        except (SafetensorError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise RequestError(f"{path} is not a key of a disguise: {error}") from error
        if not is_intact:
            raise RequestError(f"{path} is not a key of a disguise, or is damaged")
        return key


def _is_well_formed(key: Key) -> bool:
    """Tell whether a newly drawn key could look like this: names, types, shapes and values."""
    template = Key.new(key.notation, key.shape, _Zeros())  # type: ignore[arg-type]
    expected, actual = (
        {name: (t.dtype, t.shape) for name, t in each.tensors.items()} for each in (template, key)
    )
    if actual != expected or key.notation != template.notation:
        return False
    return all(step.is_valid_key(key.of(place)) for place, step in enumerate(key.steps))


class _Zeros:
    """A fake source of randomness, to learn what a key looks like."""

    def bytes(self, length: int) -> bytes:
        return bytes(length)

    def standard_normal(self, shape: tuple[int, ...], dtype: type = float) -> object:
        return torch.eye(shape[-1]).expand(shape).numpy().astype(dtype)
