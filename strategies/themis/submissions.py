"""What participants submitted, so that a leaderboard can be audited later.

A deployment keeps hashes and signatures in ``manifest.json``, and the predictions, for the
organiser alone, in ``submissions.safetensors``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from flwr.app import RecordDict

from pudica.clients import protocol
from pudica.clients.themis.submissions import build_statement, digest, is_signed
from pudica.models.clock import timestamp
from pudica.models.files import save_tensors, write_atomically
from pudica.strategies.core.recorder import MemoryRecorder, Recorder
from pudica.strategies.core.registry import NodeRegistry, key_fingerprint

MANIFEST, PREDICTIONS = "manifest.json", "submissions.safetensors"
FORMAT = "pudica-manifest-1"


class Submission(NamedTuple):
    """A participant's predicted classes, (N,), for some released images.

    Signature and public key are empty in a simulation.
    """

    predictions: np.ndarray
    signature: str
    public_key: str

    @classmethod
    def read(cls, content: RecordDict, count: int, classes: int) -> Submission:
        """Return what a reply says.

        Raises
        ------
        KeyError, ValueError
            A reply that is not one class per image; it scores nothing.
        """
        predictions = protocol.labels_of(content, "predictions", count, classes)
        words = {"signature": "", "public_key": "", **protocol.words_of(content)}
        signed = (protocol.text(words, name) for name in ("signature", "public_key"))
        return cls(predictions, *signed)

    @property
    def digest(self) -> str:
        """The hash of the predictions."""
        return digest(self.predictions)


class Submissions:
    """The submissions of a competition; without a deployment's registry, nothing is saved."""

    def __init__(self, recorder: MemoryRecorder, registry: NodeRegistry | None) -> None:
        self.recorder = recorder
        self.run = recorder.name
        self.registry = registry
        self.entries: list[dict[str, Any]] = recorder.note.setdefault("submissions", [])

    def find_problem(self, node: str, images: str, submission: Submission) -> str:
        """Return why a submission can't be that node's; empty if it can."""
        if self.registry is None:
            return ""
        keys = {entry.name: entry.fingerprint for entry in self.registry.nodes()}
        if key_fingerprint(submission.public_key.encode()) != keys.get(node):
            return "its predictions are not signed by the key it was registered with"
        text = build_statement(self.run, images, submission.digest, len(submission.predictions))
        if not is_signed(text, submission.signature, submission.public_key):
            return "the signature under its predictions does not hold"
        return ""

    def find_counts(self, key: Mapping[str, str | float]) -> dict[str, int]:
        """Return how many predictions were correct in earlier submissions, by participant.

        ``key`` says which release, which images of it and which variant.
        """
        return {
            entry["participant"]: entry["right"]
            for entry in self.entries
            if all(entry[name] == value for name, value in key.items())
        }

    def save(
        self,
        node: str,
        images: str,
        submission: Submission,
        correct: int,
        key: Mapping[str, str | float],
    ) -> None:
        """Save a submission in a checkpoint; ``key``: as of find_counts."""
        if self.registry is None:
            return
        number = len(self.entries)
        self.recorder.arrays[f"submissions/{number}"] = torch.from_numpy(submission.predictions)
        entry = {
            "participant": node,
            **key,
            "images": images,
            "predictions": submission.digest,
            "count": len(submission.predictions),
            "right": correct,
            "received": timestamp(),
            "signature": submission.signature,
            "public_key": submission.public_key,
        }
        self.entries.append(entry)
        self.recorder.checkpoint()

    def publish(self, images: int, draws: int) -> None:
        """Write manifest and predictions of a test set of ``images`` images."""
        if self.registry is None:
            return
        recorder = self.recorder
        assert isinstance(recorder, Recorder)
        boards = sorted(recorder.directory.glob("*/leaderboard.csv"))
        manifest = {
            "format": FORMAT,
            "run": self.run,
            "experiment": recorder.experiment.name,
            "code": recorder.run["code"],
            "stages": recorder.note.get("stages", {}),
            "test": {"images": images, "draws": draws},
            "leaderboards": {
                str(path.relative_to(recorder.directory)): sha256(path.read_bytes())
                for path in boards
            },
            "submissions": self.entries,
        }
        text = json.dumps(manifest, indent=2, sort_keys=True) + "\n"
        write_atomically(recorder.artefact(MANIFEST), text.encode())
        arrays = {k: v for k, v in recorder.arrays.items() if k.startswith("submissions/")}
        save_tensors(recorder.artefact(PREDICTIONS), arrays, {"run": self.run})


def sha256(data: bytes) -> str:
    """Return the SHA-256 of a file's content, hexadecimal."""
    return hashlib.sha256(data).hexdigest()
