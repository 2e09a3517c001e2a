"""What a server tells a node when it joins, kept in the node's vault."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pudica import models
from pudica.clients import shields
from pudica.clients.data import DataConfig, ImageSet, Part, Splits, select_node_images
from pudica.clients.runtime.systems import systems
from pudica.clients.shields import AnyShield, ShieldConfig
from pudica.clients.shields.dp_sgd import DpSgdConfig
from pudica.clients.shields.mixing import padded_count
from pudica.models.compute import ComputeConfig
from pudica.models.custom import ModelName
from pudica.models.files import AbsolutePath
from pudica.models.naming import CaseName, Name, RunName
from pudica.models.optimizers import OptimizerConfig
from pudica.models.training import TrainingConfig

Attack = Literal["nan", "huge", "sign-flip", "wrong-shape", "wrong-key", "empty"]
Fronts = Literal["average", "handoff", "private", "frozen"]
Wire = Literal["float32", "float16"]
MOST_RELEASES = 10_000
"""Of an image in one case: that many can be added up in no time."""
USUAL_DELTA = 1e-5
"""Of all releases of an image, where nothing else is said."""
OWN = "own"
"""The model of a participant that brings one the organiser does not know."""


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Assignment(_Settings):
    """What every node is told.

    Attributes
    ----------
    run : str
        The run's name: a resumed run finds the vault it left.
    data_seed : int
        Derived from the run's seed, which itself is not sent.
    partition, partitions : int
        This node's number, and how many there are.
    whole : bool
        Whether the images are this node's own, of which nobody else has a share.
    """

    if TYPE_CHECKING:
        # Each kind names its own, behind these fields: fingerprints hang on their order.
        system: str

    run: RunName
    data: DataConfig
    data_seed: int
    partition: int
    partitions: int
    compute: ComputeConfig
    whole: bool = False

    def share(self, data: Splits, part: Part) -> ImageSet:
        """Return this node's images of one part."""
        number, nodes = (0, 1) if self.whole else (self.partition, self.partitions)
        return select_node_images(data, part, number, nodes, self.data.partition, self.data_seed)

    def list_models(self) -> list[str]:
        """Return the names of all models that a node would build; a deployed one checks them."""
        model = getattr(self, "model", None)
        return [model] if isinstance(model, str) else []

    def fingerprint(self) -> str:
        """Return a hash of everything here that decides what the node computes."""
        values = self.model_dump_json(exclude=self._immaterial())
        return hashlib.blake2b(values.encode(), digest_size=16).hexdigest()

    def _immaterial(self) -> set[str]:
        """Return what decides nothing of what is computed."""
        return {"run", "compute"}


class ParticipantConfig(_Settings):
    """One participant of a competition.

    Attributes
    ----------
    model : str
        A name of the zoo, ``custom:FILE.py:callable`` or a ``.pt2`` file; ``own`` where only the
        participant knows it.
    weights : Path or None
        Safetensors of a model that is trained already, and is not trained on. None: it is trained.
    name : str
        The name on the leaderboard; if left out, the model's published name.
    training : TrainingConfig or None
        How this participant trains. None: as ``training`` of the experiment says.
    """

    model: ModelName
    weights: AbsolutePath | None = None
    name: Name = Field(default="", pattern=r"^[^/\\]*$", description="a name without / and \\")
    training: TrainingConfig | None = None

    @model_validator(mode="before")
    @classmethod
    def _name_by_model(cls, values: object) -> object:
        if isinstance(values, dict) and isinstance(values.get("model"), str):
            name = values.get("name") or models.display_name(values["model"])
            return {**values, "name": name}
        return values


class ParticipantAssignment(Assignment):
    """A participant of THEMIS.

    Attributes
    ----------
    training_seed : int
        Of weights and batches. The run's seed is not sent: the test set's noise comes from it.
    private_key : Path or None
        By which a deployed node signs what it submits; its own settings say which.
    """

    system: Literal["themis"] = "themis"
    participant: ParticipantConfig
    training: TrainingConfig
    training_seed: int
    private_key: Path | None = None

    def list_models(self) -> list[str]:
        """Return the participant's."""
        return [self.participant.model]

    def _immaterial(self) -> set[str]:
        partitioned = self.data.partition is not None
        # Without a share of the data it does not matter who else takes part.
        others = set() if partitioned else {"partition", "partitions"}
        return super()._immaterial() | {"private_key"} | others


class Report(_Settings):
    """How often a device counts right answers on one part of its images, with which ε for each."""

    count: int = Field(ge=0, le=MOST_RELEASES)
    epsilon: float | None = Field(default=None, gt=0, allow_inf_nan=False)


class Budget(_Settings):
    """What all releases of an image may add up to."""

    epsilon: float = Field(gt=0, allow_inf_nan=False)
    delta: float = Field(gt=0, lt=1)


class NodeLimits(_Settings):
    """What a deployed device allows, whatever it is asked for: by its own settings.

    Attributes
    ----------
    epsilon, delta : float or None
        What all releases of an image may add up to, in all runs together. None: no ε is
        promised; one in as many as there are images.
    activations : int
        How often an image's activations may leave, in all runs together.
    front : str or None
        The digest of the only front that it takes.
    """

    epsilon: float | None
    delta: float | None
    activations: int
    front: str | None


class EdgeAssignment(Assignment):
    """A device of split learning; settings as in ``split`` of an experiment, and these.

    Attributes
    ----------
    noise : {"seeded", "secret"}
        From ``seed``, to be repeated; or from a key that the device draws from the system's
        randomness and keeps in its vault.
    seed : int
        Of the order of batches, dropout and seeded noise.
    batch_size : int
        The most examples that are protected together.
    releases : int
        How often each training example's activation is to be released.
    test_features : bool
        Whether test activations are to be sent, to be classified by the cloud.
    reports, report : dict of str to Report, bool
        By part, how often right answers are counted; whether the device says so.
    budget : Budget or None
        What the releases of this case may add up to.
    limits : NodeLimits or None
        Of the device itself; an organiser's do not count.
    """

    system: Literal["split"] = "split"
    case: CaseName
    model: str
    cut: str
    fronts: Fronts
    shield: AnyShield
    noise: Literal["seeded", "secret"]
    seed: int
    batch_size: int = Field(ge=1, le=MOST_RELEASES)
    wire: Wire
    optimizer: OptimizerConfig
    releases: int = Field(default=1, ge=0, le=MOST_RELEASES)
    test_features: bool = False
    reports: dict[Literal["validation", "test"], Report] = {}
    report: bool = True
    budget: Budget | None = None
    limits: NodeLimits | None = None
    plain_to_cloud: bool = False

    @property
    def guaranteed(self) -> bool:
        """Whether something is promised to each of the device's images."""
        return is_guaranteed(self.shield, self.fronts, self.noise)

    def _immaterial(self) -> set[str]:
        # Limits decide what is refused, and nothing of what is computed.
        limits = {"releases", "test_features", "reports", "report", "budget", "limits"}
        return super()._immaterial() | limits


class SplitTerms(_Settings):
    """What a strategy tells the edges of somebody's own app, whose model and data it does not know.

    Settings as of :class:`EdgeAssignment`; without an optimizer, the device says.
    """

    fronts: Fronts
    batch_size: int = Field(ge=1, le=MOST_RELEASES)
    wire: Wire
    seed: int = Field(ge=0)
    optimizer: OptimizerConfig | None


def hash_name(run: str, name: str) -> str:
    """Return what a node of a run recognises its name by, where others hear it, too."""
    return hashlib.blake2b(f"{run}/{name}".encode(), digest_size=8).hexdigest()


def is_guaranteed(shield: ShieldConfig, fronts: Fronts, noise: str) -> bool:
    """Tell whether a device of split learning promises something to each of its images.

    That is so if nothing leaves but behind a mechanism for records, under secret noise, of a front
    that does not learn from them.
    """
    noisy = getattr(shield, "epsilon", None) is not None
    protects = shield.name in shields.RECORD_LEVEL and noisy
    return protects and fronts == "frozen" and noise == "secret"


class OwnerAssignment(Assignment):
    """An owner of images in DLMT; settings as in ``dlmt`` of an experiment, and these.

    Attributes
    ----------
    key : str
        ``shared``: from ``data_seed``; ``per-owner``: from that and the partition; else the
        name of a file.
    seed : int
        Of the order of batches and of augmentation.
    report : bool
        Whether the owner says how often models were right.
    dp : DpSgdConfig or None
        Train by DP-SGD, if owners train.
    """

    system: Literal["dlmt"] = "dlmt"
    case: CaseName
    shield: str | None
    key: str
    train: Literal["central", "federated"]
    model: str
    training: TrainingConfig
    local_epochs: int
    keep_momentum: bool
    measures: bool
    examiner: str | None
    seed: int
    report: bool = True
    dp: DpSgdConfig | None = None

    def _immaterial(self) -> set[str]:
        # Fingerprints of runs that began before there was this setting stay as they were.
        return super()._immaterial() | (set() if self.dp else {"dp"})

    def list_models(self) -> list[str]:
        """Return its own and the examiner."""
        return [self.model, *([self.examiner] if self.examiner else [])]


class InferenceAssignment(Assignment):
    """An edge of FaceMix; settings as in ``facemix`` of an experiment, and these.

    Attributes
    ----------
    stages : (str, str)
        The layers after which ``pre`` and ``main`` end.
    keys : {"seeded", "secret"}
        As ``noise`` of :class:`EdgeAssignment`.
    seed : int
        Of the order of batches, augmentation and seeded keys.
    batch_size, request : int
        Images of a training batch, and of a request.
    class_weights : {"none", "balanced"}
        By the edge's own images.
    """

    system: Literal["facemix"] = "facemix"
    case: CaseName
    model: str
    stages: tuple[str, str]
    shield: AnyShield
    keys: Literal["seeded", "secret"]
    train: Literal["central", "split"]
    seed: int
    batch_size: int
    request: int
    augment: Literal["none", "crop-flip", "handwriting"] = "none"
    class_weights: Literal["none", "balanced"] = "none"
    wire: Wire
    report: bool

    @property
    def largest(self) -> int:
        """The most examples that are protected together, decoys among them."""
        return padded_count(max(self.batch_size, self.request), self.shield)


def parse_assignment(text: str | bytes) -> Any:
    """Return an assignment from JSON; RuntimeError if its system is not installed here."""
    name = json.loads(text).get("system")
    if name not in systems():
        raise RuntimeError(
            f"the system {name!r} is not installed on this node; there are {', '.join(systems())}"
        )
    # Paths in it are the organiser's: what is in this node's folders is none of its business.
    schema = systems()[name].part("assignment")
    return schema.model_validate_json(text, context={"folder": None})
