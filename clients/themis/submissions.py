"""Signed submissions.

A participant signs the hashes of the images that it was given and of the classes that it
predicted. So the organiser can't change a submission later, and the participant can't deny it.
"""

from __future__ import annotations

import hashlib
import json
from base64 import b64decode, b64encode
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_ssh_private_key,
)
from flwr.supercore.primitives.asymmetric import (
    bytes_to_public_key,
    sign_message,
    verify_signature,
)


def digest(values: np.ndarray) -> str:
    """Return the SHA-256 of an array's type, shape and values, little-endian."""
    plain = np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
    head = f"{plain.dtype.name} {'x'.join(map(str, plain.shape))}\n"
    return hashlib.sha256(head.encode() + plain.tobytes()).hexdigest()


def build_statement(run: str, images: str, predictions: str, count: int) -> str:
    """Return what is signed, a line of JSON: digests of images and classes (int64), their count."""
    content = {"run": run, "images": images, "predictions": predictions, "count": count}
    return json.dumps(content, sort_keys=True)


def sign_with_file(private_key: Path, text: str) -> dict[str, str]:
    """Sign a text with a node's private key in a file (OpenSSH); as :func:`sign_text`."""
    key = load_ssh_private_key(private_key.read_bytes(), None)
    assert isinstance(key, EllipticCurvePrivateKey)
    return sign_text(key, text)


def sign_text(key: EllipticCurvePrivateKey, text: str) -> dict[str, str]:
    """Return the ``signature`` of a text, and the ``public_key`` (PEM) to verify it with."""
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    signature = sign_message(key, text.encode())
    return {"signature": b64encode(signature).decode(), "public_key": public.decode()}


def is_signed(text: str, signature: str, public_key: str) -> bool:
    """Tell whether a text was signed by the owner of a key."""
    try:
        key, raw = bytes_to_public_key(public_key.encode()), b64decode(signature, validate=True)
        return verify_signature(key, text.encode(), raw)
    except (ValueError, TypeError, AttributeError):
        return False
