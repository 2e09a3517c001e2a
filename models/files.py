"""Atomic file writes, file locks, and tensors in safetensors files."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Annotated, Any, TypeVar

import torch
from pydantic import AfterValidator, ValidationInfo
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import nn

from pudica.models.errors import RequestError

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

T = TypeVar("T")


def make_absolute(path: Path, folder: Path = Path()) -> Path:
    """Return the absolute path, with ``~`` expanded; a relative one starts from a folder.

    ValueError if there is no home directory of that name.
    """
    try:
        return (folder / path.expanduser()).absolute()
    except RuntimeError as error:
        raise ValueError(f"{path}: {error}") from error


def resolve_with(resolve: Callable[[T, Path], T]) -> AfterValidator:
    """Return what makes a value in settings mean the same in any directory.

    Parameters
    ----------
    resolve : callable
        ``resolve(value, folder)``: relative paths start from the folder, which is the working
        directory, or the context's. None: values stay as they are, being somebody else's.

    >>> Settings.model_validate(values, context={"folder": file.parent})
    """

    def validate(value: T, info: ValidationInfo) -> T:
        folder = (info.context or {}).get("folder", Path())
        return value if folder is None else resolve(value, folder)

    return AfterValidator(validate)


AbsolutePath = Annotated[Path, resolve_with(make_absolute)]
"""A path in settings."""


def file_unless(*words: str) -> AfterValidator:
    """Return what makes a text in settings an absolute path, unless it is one of some words.

    >>> weights: Annotated[str, file_unless("pretrained")]
    """

    def resolve(text: str, folder: Path) -> str:
        return text if not text or text in words else str(make_absolute(Path(text), folder))

    return resolve_with(resolve)


def write_atomically(path: Path, data: bytes, mode: int = 0o644, durable: bool = False) -> None:
    """Write a file so that readers see the old or the new content, even if the process is killed.

    If ``durable``, return only once the file is on disk, so that it survives a power cut.
    """
    # Of this thread alone: others may write the same file, from other containers too.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    # Never reuse an existing file or link: it would keep its own mode, or lead elsewhere.
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    descriptor = os.open(temporary, flags, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
        if durable:
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
    finally:
        temporary.unlink(missing_ok=True)


def try_lock(file: IO[str]) -> bool:
    """Lock a file for this process while it stays open; return False if another process holds it.

    Some network file systems have no locks; there, the call succeeds without one.
    """
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EACCES, errno.EAGAIN)
    return True


@contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Hold a file's lock; create the file if needed, and wait while another holds it.

    Unlike :func:`try_lock`, it also keeps the threads of one process apart.
    """
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # released when the file closes, or its process dies
        yield


def is_accessible_by_others(path: Path) -> bool:
    """Tell whether a file's mode gives anyone but its owner access."""
    return os.name == "posix" and bool(path.stat().st_mode & 0o077)


def save_tensors(
    path: Path, tensors: Mapping[str, torch.Tensor], note: Mapping[str, Any], mode: int = 0o600
) -> None:
    """Write tensors and a JSON note into one safetensors file, atomically."""
    write_atomically(path, serialise_tensors(tensors, note), mode)


def serialise_tensors(tensors: Mapping[str, torch.Tensor], note: Mapping[str, Any]) -> bytes:
    """Return the bytes that :func:`save_tensors` writes."""
    detached = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    return save(detached, {"note": json.dumps(note)})


def load_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
    """Return what :func:`save_tensors` wrote, or None if there is no such file."""
    if not path.exists():
        return None
    with safe_open(path, framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        return tensors, json.loads(file.metadata()["note"])


def load_weights(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a user's safetensors file; nothing is unpickled.

    Raises RequestError if there is no such file, or it has another format.
    """
    if not path.is_file():
        raise RequestError(f"weights: there is no file {path}")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise RequestError(
            f"weights: {path} is not a safetensors file ({error}); a PyTorch checkpoint is "
            "converted by safetensors.torch.save_file(torch.load(FILE, weights_only=True), NEW)"
        ) from error


def load_weights_into(model: nn.Module, path: Path) -> None:
    """Load the weights of a safetensors file into a model.

    Raises as :func:`load_weights`, and if a name or shape does not match.
    """
    weights, state = load_weights(path), model.state_dict()
    for name in [*weights, *state]:
        shapes = [tuple(each[name].shape) if name in each else None for each in (weights, state)]
        if shapes[0] != shapes[1]:
            raise RequestError(
                f"weights: {path} is of another model: '{name}' is "
                f"{shapes[0] or 'missing'} there, and {shapes[1] or 'missing'} in the model"
            )
    model.load_state_dict(weights)
