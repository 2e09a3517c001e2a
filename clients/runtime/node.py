"""What a deployed node decides for itself, whatever the organiser says: its ``node.yaml``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from flwr.app import Context
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

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
from pudica.clients.runtime.systems import systems
from pudica.clients.shields import Mechanism
from pudica.clients.shields.disguises import UNUSABLE, Key
from pudica.clients.shields.mixing import MixingConfig
from pudica.models.compute import ComputeConfig
from pudica.models.custom import PREFIX, SUFFIX, ModelName
from pudica.models.errors import RequestError
from pudica.models.explain import explain_errors
from pudica.models.files import AbsolutePath
from pudica.models.naming import NodeName

NODE = "node"
"""The key of Flower's node configuration that names the file."""

LEAST_GROUPS = 8
"""Of a request: shuffled among fewer, mixtures are easier to take apart."""

USUAL_RELEASES = 100
"""Of an image's activations, behind noise that promises nothing."""

Server = Annotated[str, Field(pattern=r"^[^\s:/]+:\d+$", description="HOST:PORT")]


class OwnData(BaseModel):
    """Where this node's images are.

    Attributes
    ----------
    name : str or None
        A data set's name: its own images, of which it holds nobody else's share. Left out: the
        organiser's set, of which the node takes its share where a system divides it.
    root, path, label, split
        As in an experiment's ``data``.
    attributes : tuple of str
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str | None = None
    root: AbsolutePath | None = None
    path: AbsolutePath | None = None
    label: str | None = None
    split: Literal["own", "public", "train-test", "4:1:1", "9:1"] | None = None
    attributes: tuple[str, ...] = ()

    def applied(self, config: DataConfig) -> DataConfig:
        """Return the organiser's settings with this node's own in their place.

        Raises
        ------
        RequestError
            If they do not go together.
        """
        own = {key: value for key, value in self.model_dump().items() if value}
        # Nobody else says which files are read here, nor which column of one's own data counts.
        foreign = {"root", "path", "key", "download"}
        foreign |= {"label", "attributes"} if self.name else set()
        theirs = {k: v for k, v in config.model_dump().items() if k not in foreign}
        try:
            return DataConfig.model_validate({**theirs, **own})
        except ValidationError as error:
            raise RequestError("; ".join(explain_errors(error, DataConfig, "data"))) from error


class NodeBudget(BaseModel):
    """What all releases of an image may add up to, in all runs together.

    Attributes
    ----------
    epsilon : float
    delta : float or None
        None: 1e-5, or one in as many as the node has images if that is less.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    epsilon: float = Field(gt=0, allow_inf_nan=False)
    delta: float | None = Field(default=None, gt=0, lt=1)


class NodeConfig(BaseModel):
    """A node of a deployment.

    Attributes
    ----------
    name : str
        By which the organiser registered it.
    server : str
        ``HOST:PORT`` of the organiser.
    certificate : Path
        Of the authority by which the organiser's server shows who it is.
    private_key : Path
        By which this node shows who it is.
    vault : Path
        What the node keeps to itself.
    systems : tuple of str
        In what it takes part; anything else is refused.
    data : OwnData
    model : str or None
        THEMIS: its own, a name of the zoo, ``custom:FILE.py:callable`` or a ``.pt2`` file.
    weights : Path or None
        THEMIS: safetensors of a model that is trained already.
    key : Path or None
        DLMT: by which its images are disguised, and in no other way.
    train : {"central", "federated"} or None
        DLMT: the only way in which it takes part.
    measures : bool
        DLMT, with a key: whether it says what others' models make of its plain images.
    shield : dict or None
        Split learning: settings that the shield at the cut must have. Noise is secret then, and
        nothing is sent without it.
    fronts : tuple of str or None
        Split learning, with a shield: how fronts may be kept; ``average`` and ``handoff`` send
        gradients and weights in the clear, and no front that learns leaves a guarantee. Left
        out: ``frozen``, and ``private`` where the shield has no guarantee.
    cut : str or None
        Split learning: the only layer after which the model may be cut.
    releases : int or None
        Split learning, with a shield: how often an image's activations may leave, in all runs
        together. Left out: once where the shield has a guarantee, else 100 times.
    budget : NodeBudget or None
        Split learning, with a shield that has a guarantee: what all releases of an image may add
        up to, in all runs together. Left out: what ``releases`` of this shield do.
    front : str or None
        Split learning: the digest of the only front that the device takes.
    mixing : int or None
        FaceMix: the least group; keys are secret then, and the edge does not train.
    report : {"none", "noisy", "exact"} or None
        Split learning, DLMT, FaceMix: how it says how often models were right on its validation
        and test images. Left out: ``noisy`` behind a shield with a guarantee, and paid for;
        ``exact`` where the organiser is trusted with all else, otherwise ``none``.
    trust_organiser : bool
        Whether the organiser alone may say how images are protected, where the above does not.
    device : {"auto", "cpu", "cuda"} or None
    threads : int or None
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: NodeName
    server: Server
    certificate: AbsolutePath
    private_key: AbsolutePath
    vault: AbsolutePath
    systems: tuple[str, ...] = Field(min_length=1)
    data: OwnData = OwnData()
    model: ModelName | None = None
    weights: AbsolutePath | None = None
    key: AbsolutePath | None = None
    train: Literal["central", "federated"] | None = None
    measures: bool = False
    shield: dict[str, Any] | None = None
    fronts: tuple[Fronts, ...] | None = Field(default=None, min_length=1)
    cut: str | None = None
    releases: int | None = Field(default=None, ge=1)
    budget: NodeBudget | None = None
    front: str | None = Field(default=None, pattern=r"^[0-9a-f]{32}$", description="32 hex digits")
    mixing: int | None = Field(default=None, ge=2)
    report: Literal["none", "noisy", "exact"] | None = None
    trust_organiser: bool = False
    device: Literal["auto", "cpu", "cuda"] | None = None
    threads: int | None = Field(default=None, ge=1, le=1024)

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
        shields.validate_settings(settings)
        schema, kind = shields.SHIELDS[settings["name"]]
        if issubclass(kind, Mechanism) and settings.get("epsilon") is None:
            raise ValueError(
                f"'{settings['name']}' without epsilon leaves it to the organiser whether there is "
                "any noise; say how large it may be"
            )
        # What is said has to be possible; what is left out has a default.
        schema.model_validate(settings)
        return settings

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.shield is None:
            for name in ("fronts", "cut", "releases", "budget", "front"):
                if getattr(self, name) is not None:
                    raise ValueError(f"{name}: needs a shield, behind which it holds")
        if not self.guarantees:
            self._check_no_guarantee()
        elif self.report == "exact":
            raise ValueError(
                "report: 'exact' counts are no part of what this shield promises; allowed: noisy, "
                "none"
            )
        return self

    def _check_no_guarantee(self) -> None:
        if self.budget:
            raise ValueError(
                "budget: needs a shield that has a guarantee to spend; allowed: "
                + ", ".join(shields.RECORD_LEVEL)
            )
        if self.report == "noisy":
            raise ValueError(
                "report: 'noisy' needs a shield that has a guarantee; allowed: none, exact"
            )

    @property
    def guarantees(self) -> bool:
        """Whether this node's images are promised something in split learning."""
        name = self.shield["name"] if self.shield else ""
        return name in shields.RECORD_LEVEL and self.allowed_fronts == ("frozen",)

    @property
    def allowed_fronts(self) -> tuple[Fronts, ...]:
        """How fronts may be kept: as it says, else only in ways that spoil no guarantee."""
        if self.fronts is not None:
            return self.fronts
        record = self.shield is not None and self.shield["name"] in shields.RECORD_LEVEL
        return ("frozen",) if record else ("frozen", "private")

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
        """Return the settings of a file; paths in it are relative to its folder.

        Raises
        ------
        RequestError
            It is not there, or something in it is not allowed.
        """
        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8"))
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

    def agreed(self, assignment: Assignment) -> Assignment:
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
            "data": self.data.applied(assignment.data),
            "compute": self.computes(assignment.compute),
            "whole": self.data.name is not None,
            **self._own(assignment),
        }
        agreed = type(assignment).model_validate({**assignment.model_dump(), **changes})
        self._check_models(agreed)
        return agreed

    def _check_models(self, agreed: Assignment) -> None:
        """See that no code or file is loaded that only the organiser names."""
        theirs = [name for name in agreed.list_models() if name != self.model]
        foreign = any(name.startswith(PREFIX) or name.endswith(SUFFIX) for name in theirs)
        if foreign and not self.trust_organiser:
            raise RuntimeError(
                "the organiser names a model that is code or a file of this node; it loads none "
                "but its own, model: … in node.yaml"
            )

    def computes(self, compute: ComputeConfig) -> ComputeConfig:
        """Return how it computes."""
        own = {"device": self.device, "threads": self.threads}
        return compute.model_copy(update={k: v for k, v in own.items() if v is not None})

    def _own(self, assignment: Assignment) -> dict[str, Any]:
        if isinstance(assignment, ParticipantAssignment):
            return self._as_participant(assignment)
        if isinstance(assignment, OwnerAssignment):
            return self._as_owner(assignment)
        if isinstance(assignment, EdgeAssignment):
            self._check_shield(assignment)
            return self._limits(assignment)
        if isinstance(assignment, InferenceAssignment):
            return self._as_inference_edge(assignment)
        return {}

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
            self._trusting("key")
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

    def _check_shield(self, assignment: EdgeAssignment) -> None:
        if self.shield is None:
            self._trusting("shield")
            return
        theirs = assignment.shield.model_dump()
        wanted: dict[str, tuple[Any, list[Any]]] = {
            name: (theirs.get(name), [value])
            for name, value in self.shield.items()
            if not self._is_less(name, theirs)
        }
        wanted["noise"] = (assignment.noise, ["secret"])
        wanted["plain_to_cloud"] = (assignment.plain_to_cloud, [False])
        wanted["front"] = (assignment.fronts, list(self.allowed_fronts))
        if self.cut is not None:
            wanted["cut"] = (assignment.cut, [self.cut])
        for name, (value, allowed) in wanted.items():
            if value not in allowed:
                raise RuntimeError(
                    f"this device sends nothing but behind {self.shield}; the organiser wants "
                    f"{name}: {value}, allowed: {', '.join(map(str, allowed))}"
                )

    def _is_less(self, name: str, theirs: Mapping[str, Any]) -> bool:
        """Tell whether a shield that is asked for gives away less than it may."""
        assert self.shield
        own, value = self.shield[name], theirs.get(name)
        same = theirs["name"] == self.shield["name"]
        return same and name in ("epsilon", "delta") and value is not None and value <= own

    def _limits(self, assignment: EdgeAssignment) -> dict[str, Any]:
        """Return what this device allows; its organiser's word for it does not count."""
        report = {"report": self.reports != "none"}
        if self.shield is None:
            return {**report, "limits": None}
        epsilon, delta = self.total
        limits = NodeLimits(
            epsilon=epsilon, delta=delta, activations=self.activations, front=self.front
        )
        reports = assignment.reports if self.reports != "none" else {}
        return {**report, "limits": limits, "reports": reports}

    def _as_inference_edge(self, assignment: InferenceAssignment) -> dict[str, Any]:
        if self.mixing is None:
            self._trusting("mixing")
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

    def _trusting(self, setting: str) -> None:
        if not self.trust_organiser:
            raise RuntimeError(
                f"this node's owner has not said how its images are protected: set {setting} in "
                "node.yaml, or trust_organiser: true"
            )
