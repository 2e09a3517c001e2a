"""The ``dlmt`` section of an experiment."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from pudica.clients.data import PartitionConfig
from pudica.clients.shields.disguises import format_notation, parse_notation
from pudica.clients.shields.dp_sgd import DpSgdConfig
from pudica.models.custom import ModelName
from pudica.models.files import file_unless
from pudica.models.naming import CaseName
from pudica.models.training import TrainingConfig
from pudica.strategies.core.cases import CasesConfig

FEDERATED_ONLY = {"local_epochs", "participation", "keep_momentum", "aggregate"}
SHARED_KEY, OWN_KEYS = "shared", "per-owner"


class ScheduleConfig(TrainingConfig):
    """A training schedule with the learning rate of paper 001.

    Momentum, weight decay and batch size are those of kuangliu/pytorch-cifar, on which its
    implementation is based.

    Attributes
    ----------
    patience : None
        There is no early stopping.
    """

    epochs: int = Field(default=200, ge=1)
    batch_size: int = Field(default=128, ge=1)
    learning_rate: float = Field(default=0.2, gt=0, le=10)
    weight_decay: float = Field(default=5e-4, ge=0, le=1)
    schedule: Literal["step", "cosine"] = "cosine"
    patience: None = None


class AggregationConfig(BaseModel):
    """How the owners' models become one: Flower's FedAvg, or FedOpt (Reddi et al. 2021).

    Buffers, such as running variances, are averaged in any case: an optimiser could make them
    negative.

    Attributes
    ----------
    name : {"fedavg", "fedadagrad", "fedadam", "fedyogi"}
        How models are combined; the last three are FedOpt, to which the other settings belong.
    learning_rate : float
        The learning rate at the cloud.
    beta_1 : float
        ``fedadam``, ``fedyogi``: the decay of the mean of updates.
    beta_2 : float
        ``fedadam``, ``fedyogi``: the decay of the mean of their squares.
    tau : float
        FedOpt's τ: the smaller it is, the more a step adapts to each weight.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Literal["fedavg", "fedadagrad", "fedadam", "fedyogi"] = "fedavg"
    learning_rate: float = Field(default=0.01, gt=0, le=10)
    beta_1: float = Field(default=0.9, ge=0, lt=1)
    beta_2: float = Field(default=0.99, ge=0, lt=1)
    tau: float = Field(default=1e-3, gt=0)


class DlmtConfig(CasesConfig):
    """Who disguises images how, and who trains on them.

    Attributes
    ----------
    owners : int, in owners
        How many owners there are.
    partition : PartitionConfig
        How training images are divided among owners, by default evenly at random; the others
        are divided evenly.
    shield : str or None
        How images are disguised, for example ``MAT(256)+MMT(10)``; see docs/disguises.md. None:
        not at all.
    key : str
        ``shared`` by all owners, or one ``per-owner``, both from the run's seed; or a key file.
    train : {"central", "federated"}
        ``central``: owners send disguised images, the cloud trains. ``federated``: owners train
        on their own disguised images, the cloud averages their models.
    model : str
        A name of the zoo, ``custom:FILE.py:callable`` or ``torchvision:NAME``.
    training : ScheduleConfig
        How the network is trained; ``federated``: by each owner, all rounds together.
    local_epochs : int, in epochs
        ``federated``: how many epochs an owner trains in a round.
    participation : float
        ``federated``: the share of the owners that is drawn for each round.
    keep_momentum : bool
        ``federated``: whether an owner's optimiser remembers its last round.
    aggregate : AggregationConfig
        ``federated``: how the owners' models become one.
    dp : DpSgdConfig or None
        ``federated``: each owner trains by DP-SGD. None: without noise.
    evaluate_every : int, in epochs or rounds
        Evaluate on the owners' validation and test images after every so many epochs or rounds.
    measures : bool
        Also measure, in the end, what Table III has, how the disguise looks, and how far attacks
        on it come. The owners measure; only numbers leave them.
    examiner : str or None
        The case whose model stands in for a human who looks at disguised images. None: the
        first without a shield.
    min_owners : int, in owners
        The run stops, to be resumed, if fewer answer.
    cases : dict of str to dict
        Several settings on the same data; each names what differs from the above.
    """

    shared_by_cases = frozenset({"examiner", "owners"})

    owners: int = Field(default=1, ge=1, le=10_000)
    partition: PartitionConfig = PartitionConfig()
    shield: str | None = None
    key: Annotated[str, Field(min_length=1), file_unless(SHARED_KEY, OWN_KEYS)] = SHARED_KEY
    train: Literal["central", "federated"] = "central"
    model: ModelName = "cnn-five"
    training: ScheduleConfig = ScheduleConfig()
    local_epochs: int = Field(default=1, ge=1)
    participation: float = Field(default=1.0, gt=0, le=1)
    keep_momentum: bool = False
    aggregate: AggregationConfig = AggregationConfig()
    dp: DpSgdConfig | None = None
    evaluate_every: int = Field(default=1, ge=1)
    measures: bool = True
    examiner: CaseName | None = None
    min_owners: int = Field(default=1, ge=1)

    @field_validator("shield")
    @classmethod
    def _normalise_notation(cls, shield: str | None) -> str | None:
        return None if shield is None else format_notation(parse_notation(shield))

    @model_validator(mode="after")
    def _check_consistency(self, info: ValidationInfo) -> Self:
        if self.min_owners > self.owners_a_round:
            raise ValueError(
                f"min_owners: {self.min_owners}, but {self.owners_a_round} of {self.owners} "
                "owners take part in a round"
            )
        if self.train == "federated" and self.training.epochs % self.local_epochs:
            raise ValueError(
                f"local_epochs: {self.training.epochs} epochs are no whole number of rounds of "
                f"{self.local_epochs}"
            )
        if self.train == "central" and self.training.augment_first:
            raise ValueError(
                "training.augment_first: the cloud sees no plain images that it could augment; "
                "allowed with train: federated"
            )
        if self.train == "central" and self.dp is not None:
            raise ValueError(
                "dp: owners that give their images away train nothing; allowed with "
                "train: federated"
            )
        self.resolve_cases(info)
        plain = [name for name, case in self.each_case().items() if case.shield is None]
        if self.cases and self.examiner is not None and self.examiner not in plain:
            raise ValueError(
                f"examiner: '{self.examiner}' must be a case without a shield; "
                f"there are: {', '.join(plain) or 'none'}"
            )
        return self

    @property
    def owners_a_round(self) -> int:
        """How many owners are asked in a round."""
        central = self.train == "central"
        return self.owners if central else max(1, round(self.participation * self.owners))

    @property
    def rounds(self) -> int:
        """After how many epochs or rounds training is over."""
        epochs = self.training.epochs
        return epochs if self.train == "central" else epochs // self.local_epochs

    def evaluates(self, done: int) -> bool:
        """Tell whether the model is measured after so many epochs or rounds."""
        return done % self.evaluate_every == 0 or done == self.rounds

    def without_effect(self) -> set[str]:
        """Return the settings that differ from their defaults and that no case uses."""
        cases = self.each_case().values()
        unused = set() if any(case.train == "federated" for case in cases) else set(FEDERATED_ONLY)
        unused |= set() if any(case.shield for case in cases) else {"key"}
        fields = type(self).model_fields
        return {name for name in unused if getattr(self, name) != fields[name].default}

    @property
    def key_file(self) -> Path | None:
        """The key's file, if it is to come from one."""
        return None if self.key in (SHARED_KEY, OWN_KEYS) else Path(self.key)

    def examining(self) -> str | None:
        """Return the name of the case whose model is the examiner, if there is one."""
        plain = (name for name, case in self.each_case().items() if case.shield is None)
        return self.examiner or next(plain, None)
