"""The ``themis`` section of an experiment."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from pudica.clients.assignments import Attack
from pudica.models.custom import ModelName
from pudica.models.errors import RequestError
from pudica.models.naming import Name
from pudica.models.training import TrainingConfig
from pudica.strategies.core.cases import CasesConfig

STAGES = ("join", "noise", "test")

When = AwareDatetime | Literal["command"] | None


class ReleaseConfig(BaseModel):
    """How the organiser releases the noisy test set; see also :meth:`.Themis.leaderboard`.

    Attributes
    ----------
    M : list of float or None, in units of the models' input
        Upper bounds of σ at release; the first makes the official leaderboard. None: the bound of
        the training. (The authors' code releases at a third of it.)
    draws : int, in draws
        How often the noise is drawn and the test set released; the mean accuracy decides.
    secret : bool
        Draw the noise from the system's randomness, not from the run's seed, which others may
        guess.
    compare : bool
        Also release the test set plain and under untrained noise, to compare. Never for real: it
        gives the test set away.
    images_per_message : int, in images
        How many test images a message holds.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    M: list[float] | None = Field(default=None, min_length=1)
    draws: int = Field(default=5, ge=1, le=1000)
    secret: bool = False
    compare: bool = True
    images_per_message: int = Field(default=1000, ge=1)

    @field_validator("M")
    @classmethod
    def _validate_bounds(cls, bounds: list[float] | None) -> list[float] | None:
        if bounds and not all(0 < bound <= 1000 for bound in bounds):
            raise ValueError("every M must be above 0 and at most 1000")
        if bounds and len(set(bounds)) < len(bounds):
            raise ValueError("an M is there twice")
        return bounds


class ExaminerConfig(BaseModel):
    """The network that stands in for a human who labels the noisy test images.

    Attributes
    ----------
    model : str
        A name of the zoo, ``custom:FILE.py:callable`` or ``torchvision:NAME``.
    training : TrainingConfig
        How it is trained, on plain public images.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: ModelName = "resnet-8"
    training: TrainingConfig = TrainingConfig(epochs=10, step_size=4)


class StageConfig(BaseModel):
    """When a stage of a competition is open.

    Attributes
    ----------
    opens : datetime with time zone, "command" or None
        When it opens; ``command``: by ``pudica competition open``. None: when the previous stage
        closes.
    closes : datetime with time zone, "command" or None
        When it closes; ``command``: by ``pudica competition close``. None: when everybody has
        finished.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    opens: When = None
    closes: When = None


class StagesConfig(BaseModel):
    """The stages of a competition; between them participants may come and go.

    Attributes
    ----------
    join : StageConfig
        Participants join and train their models.
    noise : StageConfig
        The noise generator is trained; closing the stage ends the training early.
    test : StageConfig
        The noisy test set is released; predictions are accepted until the stage closes.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    join: StageConfig = StageConfig()
    noise: StageConfig = StageConfig()
    test: StageConfig = StageConfig()

    @model_validator(mode="after")
    def _validate_order(self) -> StagesConfig:
        times = {
            f"{name}.{event}": when
            for name in STAGES
            for event, when in getattr(self, name)
            if isinstance(when, datetime)
        }
        for (earlier, start), (later, end) in pairwise(times.items()):
            if end < start:
                raise ValueError(f"{later} is before {earlier}, which comes first")
        return self


class ThemisConfig(CasesConfig):
    """The organiser's settings of a competition.

    Attributes
    ----------
    M : float, in units of the models' input
        The upper bound of the noise's σ in training.
    weight : float
        λ of Eq. (2), the weight of the models' accuracy against the amount of noise, for a single
        model; ``joint`` uses λ/F with F models.
    learning_rate : float
        The learning rate of Adam, which trains the noise generator.
    batch_size : int, in images
        How many public images a step of the generator takes.
    epochs : int, in epochs
        How often the generator's training goes through the public training set.
    update : {"joint", "sequential", "averaged"}
        ``joint``: all get the same noisy batch, one step on the sum (Eq. 2 as written).
        ``sequential``: the generator visits one participant after the other (the authors' code).
        ``averaged``: each takes local steps, the organiser averages.
    steps_per_visit : int, in batches
        Batches per message: local steps, or with ``joint`` the batches whose gradients are
        averaged into one step.
    epochs_per_message : int, in epochs
        The most epochs that a participant trains its own model before it answers.
    noise : {"per-image", "per-batch"}
        How often noise is drawn in training. ``per-batch``, as the authors' code does, can be
        averaged out.
    aggregate : {"mean", "median", "trimmed-mean", "krum"}
        How the participants' replies are combined.
    clip : float or None
        A reply whose norm is more than this many times the median norm is scaled down to it. None:
        none is, and nothing is defended.
    malicious : int, in participants
        How many hostile participants ``krum`` and ``trimmed-mean`` assume.
    min_participants : int, in participants
        With fewer replies than this the run stops, to be resumed.
    validate_every : int, in epochs
        Participants measure their accuracy on noisy validation images after every so many epochs.
    order : {"listed", "alphabetical", "reverse", "random"} or list of str
        In which order participants update the generator; ``random`` anew in each epoch.
    dropouts : int, in participants
        So many participants, chosen at random, miss each epoch (Case 2 of Table 2).
    bystanders : list of str
        Participants that are ranked without having trained the generator.
    late : dict of str to int, in epochs
        By participant, the epoch, counted from 0, in which it joins.
    cheaters : list of str
        Participants that train their model together with a noise generator of their own.
    hostile : dict of str to str
        By participant, how it attacks the training, to test defences.
    examiner : ExaminerConfig or None
        The network that stands in for a human who labels the noisy test images. None: there is
        none, and what it would label is not measured.
    stages : StagesConfig
        When the competition's stages open and close; for a competition of one case.
    cases : dict of str to dict
        Several settings on the same trained models; each names what differs from the above.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    shared_by_cases = frozenset({"release", "examiner", "M", "epochs_per_message", "stages"})

    M: float = Field(default=1.0, gt=0, le=1000)
    weight: float = Field(default=5.0, ge=0, le=1e6, alias="lambda")
    learning_rate: float = Field(default=0.01, gt=0, le=10)
    batch_size: int = Field(default=64, ge=1)
    epochs: int = Field(default=20, ge=0)
    update: Literal["joint", "sequential", "averaged"] = "joint"
    steps_per_visit: int = Field(default=1, ge=1)
    epochs_per_message: int = Field(default=1, ge=1)
    noise: Literal["per-image", "per-batch"] = "per-image"
    aggregate: Literal["mean", "median", "trimmed-mean", "krum"] = "mean"
    clip: float | None = Field(default=1.5, ge=1)
    malicious: int = Field(default=1, ge=0)
    min_participants: int = Field(default=1, ge=1)
    validate_every: int = Field(default=1, ge=1)
    order: Literal["listed", "alphabetical", "reverse", "random"] | list[Name] = "listed"
    dropouts: int = Field(default=0, ge=0)
    bystanders: list[Name] = []
    late: dict[Name, Annotated[int, Field(ge=0)]] = {}
    cheaters: list[Name] = []
    hostile: dict[Name, Attack] = {}
    release: ReleaseConfig = ReleaseConfig()
    examiner: ExaminerConfig | None = ExaminerConfig()
    stages: StagesConfig = StagesConfig()

    @model_validator(mode="after")
    def _check_cases(self, info: ValidationInfo) -> ThemisConfig:
        self.resolve_cases(info)
        if len(self.cases) > 1 and self.stages != StagesConfig():
            raise ValueError("stages: a competition with stages has one case")
        is_single = self.release.draws == len(self.release_bounds) == 1 and not self.cheaters
        if self.stages.test.closes is not None and not is_single:
            raise ValueError(
                "stages: a test that closes has one release, for which all wait: set "
                "release.draws=1 and one release.M, and no cheaters"
            )
        return self

    @property
    def release_bounds(self) -> list[float]:
        """M at release, the official one first."""
        return self.release.M or [self.M]

    def list_names(self) -> dict[str, Collection[str]]:
        """Return the names of participants in each setting that holds some."""
        order = self.order if isinstance(self.order, list) else []
        return {
            "bystanders": self.bystanders,
            "late": self.late,
            "cheaters": self.cheaters,
            "hostile": self.hostile,
            "order": order,
        }

    def check(self, names: list[str]) -> None:
        """Check the settings of all cases against the participants' names.

        Raises
        ------
        RequestError
            A name that is not a participant's, or more absent participants than there are.
        """
        for case, settings in self.each_case().items():
            if problem := settings._find_problem(names):
                key, reason = problem
                raise RequestError(f"themis.{key} (case '{case}'): {reason}")

    def _find_problem(self, names: list[str]) -> tuple[str, str] | None:
        """Return a key that does not fit the participants, and why."""
        everyone = ", ".join(names)
        for key, used in self.list_names().items():
            for name in used:
                if name not in names:
                    return key, f"no participant is called '{name}'; allowed: {everyone}"
        if isinstance(self.order, list) and self.order and sorted(self.order) != sorted(names):
            return "order", f"must name every participant exactly once: {everyone}"
        trainers = sum(name not in self.bystanders for name in names)
        if self.dropouts >= trainers:
            return "dropouts", (
                f"{self.dropouts} dropouts per epoch, but only {trainers} participants train the "
                f"generator; allowed: 0 to {trainers - 1}"
            )
        if self.min_participants > trainers - self.dropouts:
            return "min_participants", (
                f"{self.min_participants}, but at most {trainers - self.dropouts} participants "
                "can answer"
            )
        return None
