"""What a deployed node decides for itself, whatever the organiser says: its ``node.yaml``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from flwr.app import Context
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from pudica.clients import shields
from pudica.clients.assignments import (
    OWN,
    USUAL_DELTA,
    Assignment,
    EdgeAssignment,
    Fronts,
    InferenceAssignment,
    NodeLimits,
    OwnerAssignment,
    ParticipantAssignment,
)
from pudica.clients.data import DataConfig
from pudica.clients.data.decoding import Background, Fit
from pudica.clients.data.registry import Where
from pudica.clients.data.split_names import Patterns
from pudica.clients.runtime.systems import systems
from pudica.clients.shields import Mechanism
from pudica.clients.shields.disguises import UNUSABLE, Key
from pudica.clients.shields.mixing import MixingConfig
from pudica.models.compute import ComputeConfig
from pudica.models.custom import PREFIX, SUFFIX, ModelName
from pudica.models.errors import RequestError
from pudica.models.files import AbsolutePath
from pudica.models.naming import Label, NodeName
from pudica.models.settings import explain_errors

NODE = "node"
"""The key of Flower's node configuration that names the file."""
# In C where there is one: a node reads its file several times for each message.
SAFE_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

LEAST_GROUPS = 8
"""Of a request: shuffled among fewer, mixtures are easier to take apart."""
USUAL_RELEASES = 100
"""Of an image's activations, behind noise that promises nothing."""

Server = Annotated[str, Field(pattern=r"^[^\s:/]+:\d+$", description="HOST:PORT")]


class OwnData(BaseModel):
    """Where this node's images are; settings as in an experiment's ``data``.

    Attributes
    ----------
    name : str or None
        A data set's name: its own images, of which it holds nobody else's share. Left out: the
        organiser's set, of which the node takes its share where a system divides it.
    rename : dict of str to str
        What its own classes and attributes are called in runs.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str | None = None
    source: Where | None = None
    root: AbsolutePath | None = None
    path: AbsolutePath | None = None
    label: str | None = None
    splits: Patterns | None = None
    background: Background | None = None
    fit: Fit | None = None
    min_per_class: int | None = None
    split: Literal["own", "public", "train-test", "4:1:1", "9:1"] | None = None
    attributes: tuple[str, ...] = ()
    rename: dict[Label, Label] = {}

    @model_validator(mode="after")
    def _renames_its_own(self) -> Self:
        if self.rename and self.name is None:
            raise ValueError("rename: is for images of one's own; name them, or leave it out")
        return self

    def apply_to(self, config: DataConfig) -> DataConfig:
        """Return the organiser's settings with this node's own in them, or raise RequestError."""
        own = {key: value for key, value in self.model_dump().items() if value}
        # Nobody else says which files are read here, nor which column of one's own data counts.
        foreign = {"root", "path", "key", "download", "splits"}
        if self.name:
            foreign |= {"label", "attributes", "rename", "source", "min_per_class"}
        if config.source == "hub" and not self.name and not self.path:
            raise RequestError(
                f"data: the organiser's images are '{config.name}' of the Hugging Face Hub; name "
                "it, with source: hub, if this node is to use what was fetched of it here"
            )
        theirs = {k: v for k, v in config.model_dump().items() if k not in foreign}
        try:
            return DataConfig.model_validate({**theirs, **own})
        except ValidationError as error:
            raise RequestError("; ".join(explain_errors(error, DataConfig, "data"))) from error


class NodeBudget(BaseModel):
    """What all releases of an image may add up to, in all runs together.

    δ None: 1e-5, or one in as many as the node has images if that is less.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    epsilon: float = Field(gt=0, allow_inf_nan=False)
    delta: float | None = Field(default=None, gt=0, lt=1)


class NodeConfig(BaseModel):
    """A node of a deployment; docs/deployment.md says what each setting does."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    # Who it is, and whom it trusts.
    name: NodeName
    server: Server
    certificate: AbsolutePath
    private_key: AbsolutePath
    vault: AbsolutePath
    systems: tuple[str, ...] = Field(min_length=1)
    data: OwnData = OwnData()
    trust_organiser: bool = False
    device: Literal["auto", "cpu", "cuda"] | None = None
    threads: int | None = Field(default=None, ge=1, le=1024)

    # THEMIS: its own model, and weights that are trained already.
    model: ModelName | None = None
    weights: AbsolutePath | None = None

    # DLMT: the only disguise and the only training in which it takes part, and whether it says
    # what others' models make of its plain images.
    key: AbsolutePath | None = None
    train: Literal["central", "federated"] | None = None
    measures: bool = False

    # Split learning: settings that the shield must have, with secret noise; behind it, what may
    # happen to the front, and how much may leave in all runs together.
    shield: dict[str, Any] | None = None
    fronts: tuple[Fronts, ...] | None = Field(default=None, min_length=1)
    cut: str | None = None
    releases: int | None = Field(default=None, ge=1)
    budget: NodeBudget | None = None
    front: str | None = Field(default=None, pattern=r"^[0-9a-f]{32}$", description="32 hex digits")

    # FaceMix: the least group; keys are secret then, and the edge does not train.
    mixing: int | None = Field(default=None, ge=2)

    # Split learning, DLMT, FaceMix: how it counts right answers on validation and test images.
    report: Literal["none", "noisy", "exact"] | None = None

    @field_validator("systems")
    @classmethod
    def _are_installed(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if name not in systems():
                raise ValueError(f"'{name}' is no system; allowed: {', '.join(systems())}")
        return names

    @field_validator("shield")
    @classmethod
    def _known(cls, settings: dict[str, Any] | None) -> dict[str, Any] | None:
        if settings is None:
            return None
        shields.validate_names(settings)
        kind = shields.find_shield(settings["name"])
        if issubclass(kind, Mechanism) and settings.get("epsilon") is None:
            raise ValueError(
                f"'{settings['name']}' without epsilon leaves it to the organiser whether there is "
                "any noise; say how large it may be"
            )
        # What is said has to be possible; what is left out has a default.
        kind.schema.model_validate(settings)
        return settings

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.shield is None:
            for name in ("fronts", "cut", "releases", "budget", "front"):
                if getattr(self, name) is not None:
                    raise ValueError(f"{name}: needs a shield, behind which it holds")
        if self._has_penalty and "frozen" in self.allowed_fronts:
            raise ValueError(
                "fronts: 'frozen' learns nothing, and this shield adds to the front's loss; "
                "allowed: average, handoff, private"
            )
        if self.guarantees and self.report == "exact":
            raise ValueError(
                "report: 'exact' counts are no part of what this shield promises; allowed: noisy, "
                "none"
            )
        if self.budget and not self.guarantees:
            raise ValueError(
                "budget: needs a shield that has a guarantee to spend; allowed: "
                + ", ".join(shields.RECORD_LEVEL)
            )
        if self.report == "noisy" and not self.guarantees:
            raise ValueError(
                "report: 'noisy' needs a shield that has a guarantee; allowed: none, exact"
            )
        return self

    @property
    def guarantees(self) -> bool:
        """Whether this node's images are promised something in split learning."""
        return self._is_record_level and self.allowed_fronts == ("frozen",)

    @property
    def _is_record_level(self) -> bool:
        return self.shield is not None and self.shield["name"] in shields.RECORD_LEVEL

    @property
    def _has_penalty(self) -> bool:
        """Whether the shield adds to the loss of a front, which has to learn then."""
        return self.shield is not None and shields.find_shield(self.shield["name"]).has_penalty()

    @property
    def allowed_fronts(self) -> tuple[Fronts, ...]:
        """How fronts may be kept: as it says, else only in ways that spoil no guarantee."""
        if self.fronts is not None:
            return self.fronts
        if self._has_penalty:
            return ("private",)
        return ("frozen",) if self._is_record_level else ("frozen", "private")

    @property
    def reports(self) -> Literal["none", "noisy", "exact"]:
        """How it says how often models were right."""
        if self.report is not None:
            return self.report
        if self.guarantees:
            return "noisy"
        trusting = self.trust_organiser and not (self.shield or self.key or self.mixing)
        return "exact" if trusting else "none"

    @property
    def activations(self) -> int:
        """How often an image's activations may leave, in all runs together."""
        return self.releases or (1 if self.guarantees else USUAL_RELEASES)

    @property
    def total(self) -> tuple[float | None, float | None]:
        """ε and δ of all releases of an image; None: nothing is promised, 1 in its images."""
        if not self.guarantees:
            return None, None
        if self.budget:
            return self.budget.epsilon, self.budget.delta
        # Imported late: it takes seconds.
        from pudica.clients.shields.accounting import Cost, compose_costs

        assert self.shield
        settings = {key: value for key, value in self.shield.items() if key != "clip"}
        mechanism = shields.build(shields.parse_config(settings), (1,), 1)
        assert isinstance(mechanism, Mechanism)
        said = self.shield.get("delta")
        epsilon, _ = compose_costs([(Cost.of(mechanism), self.activations)], said or USUAL_DELTA)
        return epsilon, said

    @classmethod
    def read(cls, path: Path) -> Self:
        """Return a file's settings, paths relative to its folder, or raise RequestError."""
        try:
            values = yaml.load(path.read_text(encoding="utf-8"), SAFE_LOADER)
            return cls.model_validate(values, context={"folder": path.parent})
        except OSError as error:
            raise RequestError(f"can't read {path}: {error.strerror}") from error
        except yaml.YAMLError as error:
            raise RequestError(f"{path.name}: not valid YAML: {error}") from error
        except ValidationError as error:
            raise RequestError("\n".join(explain_errors(error, cls, path.name))) from error

    @classmethod
    def of(cls, context: Context) -> Self | None:
        """Return the settings of the node that a message reached; None in a simulation."""
        place = context.node_config.get(NODE)
        return cls.read(Path(str(place))) if place else None

    def agree_to(self, assignment: Assignment) -> Assignment:
        """Return what the organiser asks for, with this node's own choices in it.

        Raises
        ------
        RuntimeError
            It asks for what the node does not do.
        """
        if assignment.system not in self.systems:
            raise RuntimeError(
                f"this node takes part in {', '.join(self.systems)}, not in {assignment.system}"
            )
        if self.guarantees and assignment.system != "split":
            raise RuntimeError(
                f"this node's images are under a budget, which {assignment.system} would spend "
                "without end; take part in it with other images, in a folder of its own"
            )
        changes: dict[str, Any] = {
            "data": self.data.apply_to(assignment.data),
            "compute": self.configure_compute(assignment.compute),
            "whole": self.data.name is not None,
        }
        match assignment:
            case ParticipantAssignment():
                changes |= self._as_participant(assignment)
            case OwnerAssignment():
                changes |= self._as_owner(assignment)
            case EdgeAssignment():
                changes |= self._as_edge(assignment)
            case InferenceAssignment():
                changes |= self._as_inference_edge(assignment)
        agreed = type(assignment).model_validate({**assignment.model_dump(), **changes})
        # No code or file is loaded that only the organiser names.
        theirs = [name for name in agreed.list_models() if name != self.model]
        foreign = any(name.startswith(PREFIX) or name.endswith(SUFFIX) for name in theirs)
        if foreign and not self.trust_organiser:
            raise RuntimeError(
                "the organiser names a model that is code or a file of this node; it loads none "
                "but its own, model: … in node.yaml"
            )
        return agreed

    def configure_compute(self, compute: ComputeConfig) -> ComputeConfig:
        """Return how it computes: as it says itself, else as it is asked to."""
        own = {"device": self.device, "threads": self.threads}
        return compute.model_copy(update={k: v for k, v in own.items() if v is not None})

    def _as_participant(self, assignment: ParticipantAssignment) -> dict[str, Any]:
        model = self.model or assignment.participant.model
        if model == OWN:
            raise RuntimeError("this competition is between own models: name one, model: …")
        changes = {"model": model, "weights": self.weights}
        return {
            "participant": assignment.participant.model_copy(update=changes),
            "private_key": self.private_key,
        }

    def _as_owner(self, assignment: OwnerAssignment) -> dict[str, Any]:
        if self.train not in (None, assignment.train):
            raise RuntimeError(
                f"this owner takes part in {self.train} training, not in {assignment.train}"
            )
        reports = {"report": self.reports != "none"}
        if self.key is None:
            self._require_trust("key")
            return reports
        try:
            key = Key.load(self.key)
        except RequestError as error:
            raise RuntimeError(UNUSABLE) from error
        if key.notation != assignment.shield:
            raise RuntimeError(
                f"this owner's key is not for {assignment.shield or 'plain images'}, and it shows "
                "its images in no other way"
            )
        if assignment.measures and not self.measures:
            raise RuntimeError(
                "this owner does not say what models make of its plain images: dlmt.measures=false"
            )
        return {"key": str(self.key), **reports}

    def _as_edge(self, assignment: EdgeAssignment) -> dict[str, Any]:
        report = {"report": self.reports != "none"}
        if self.shield is None:
            self._require_trust("shield")
            return {**report, "limits": None}
        self._check_shield(self.shield, assignment)
        epsilon, delta = self.total
        # The device's own limits; its organiser's word for them does not count.
        limits = NodeLimits(
            epsilon=epsilon, delta=delta, activations=self.activations, front=self.front
        )
        reports = assignment.reports if self.reports != "none" else {}
        return {**report, "limits": limits, "reports": reports}

    def _check_shield(self, own: Mapping[str, Any], assignment: EdgeAssignment) -> None:
        theirs = assignment.shield.model_dump()

        def is_stricter(name: str) -> bool:
            if theirs["name"] != own["name"] or name not in ("epsilon", "delta"):
                return False
            value = theirs.get(name)
            return value is not None and value <= own[name]

        wanted: dict[str, tuple[Any, list[Any]]] = {
            name: (theirs.get(name), [value])
            for name, value in own.items()
            if not is_stricter(name)
        }
        wanted["noise"] = (assignment.noise, ["secret"])
        wanted["plain_to_cloud"] = (assignment.plain_to_cloud, [False])
        wanted["front"] = (assignment.fronts, list(self.allowed_fronts))
        if self.cut is not None:
            wanted["cut"] = (assignment.cut, [self.cut])
        for name, (value, allowed) in wanted.items():
            if value not in allowed:
                raise RuntimeError(
                    f"this device sends nothing but behind {own}; the organiser wants "
                    f"{name}: {value}, allowed: {', '.join(map(str, allowed))}"
                )

    def _as_inference_edge(self, assignment: InferenceAssignment) -> dict[str, Any]:
        if self.mixing is None:
            self._require_trust("mixing")
        else:
            shield, least = assignment.shield, LEAST_GROUPS * self.mixing
            hides = (
                isinstance(shield, MixingConfig)
                and shield.group >= self.mixing
                and shield.shuffle
                and assignment.request >= least
            )
            if not hides or assignment.keys != "secret" or assignment.train == "split":
                raise RuntimeError(
                    f"this edge sends mixtures of at least {self.mixing} under secret keys, "
                    f"shuffled in requests of at least {least}, and does not train"
                )
        return {"report": assignment.report and self.reports != "none"}

    def _require_trust(self, setting: str) -> None:
        if not self.trust_organiser:
            raise RuntimeError(
                f"this node's owner has not said how its images are protected: set {setting} in "
                "node.yaml, or trust_organiser: true"
            )
