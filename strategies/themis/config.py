"""The ``themis`` section of an experiment."""

from __future__ import annotations

from datetime import datetime
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
    """How the organiser releases the noisy test set.

    Attributes
    ----------
    M : list of float
        Upper bounds of σ at release; the first makes the official leaderboard. Left out: the
        bound of the training. (The authors' code releases at a third of it.)
    draws : int
        Noisy accuracies are measured on this many independent draws: ranks can hang on one.
    secret : bool
        Draw the noise from the system's randomness. A seeded draw is reproducible, and
        whoever guesses the run's seed can subtract it: for simulations only.
    compare : bool
        Also release the plain test set and the untrained noise, to compare with. Never in a
        real competition: it gives the test set away.
    images_per_message : int
    """

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    M: list[float] | None = Field(default=None, min_length=1)
    draws: int = Field(default=5, ge=1, le=1000)
    secret: bool = False
    compare: bool = True
    images_per_message: int = Field(default=1000, ge=1)

    @field_validator("M")
    @classmethod
    def _positive(cls, bounds: list[float] | None) -> list[float] | None:
        if bounds and not all(0 < bound <= 1000 for bound in bounds):
            raise ValueError("every M must be above 0 and at most 1000")
        if bounds and len(set(bounds)) < len(bounds):
            raise ValueError("an M is there twice")
        return bounds


class ExaminerConfig(BaseModel):
    """The network that stands in for a human who labels the noisy test images."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: ModelName = "resnet-8"
    training: TrainingConfig = TrainingConfig(epochs=10, step_size=4)


class StageConfig(BaseModel):
    """When a stage of a competition is open.

    Attributes
    ----------
    opens : datetime with time zone, "command" or None
        None: as soon as the stage before is closed.
    closes : datetime with time zone, "command" or None
        None: as soon as everybody is through.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    opens: When = None
    closes: When = None


class StagesConfig(BaseModel):
    """The stages of a competition; between them participants may come and go.

    Attributes
    ----------
    join : StageConfig
        Participants come, and train their models.
    noise : StageConfig
        The noise generator is trained. Closing it takes what is trained by then.
    test : StageConfig
        The noisy test set is released. Predictions are accepted until it closes.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    join: StageConfig = StageConfig()
    noise: StageConfig = StageConfig()
    test: StageConfig = StageConfig()

    @model_validator(mode="after")
    def _in_order(self) -> StagesConfig:
        latest: tuple[str, datetime] | None = None
        for name in STAGES:
            for what in ("opens", "closes"):
                when = getattr(getattr(self, name), what)
                if not isinstance(when, datetime):
                    continue
                if latest and when < latest[1]:
                    raise ValueError(f"{name}.{what} is before {latest[0]}, which comes first")
                latest = f"{name}.{what}", when
        return self


class ThemisConfig(CasesConfig):
    """A competition, as far as its organiser decides.

    Attributes
    ----------
    M : float
        Upper bound of σ while the generator trains, in the units of the model's input.
    weight : float
        λ of Eq. (2), ``lambda`` in YAML, for a single model; ``joint`` uses λ/F with F models.
    learning_rate, batch_size, epochs : float, int, int
        Of the generator: Adam.
    update : {"joint", "sequential", "averaged"}
        ``joint``: all get the same noisy batch, one step on the sum (Eq. 2 as written).
        ``sequential``: the generator visits one participant after the other (the authors'
        code). ``averaged``: each takes local steps, the organiser averages.
    steps_per_visit : int
        Batches per message. ``sequential``, ``averaged``: local steps. ``joint``: batches
        whose gradients are averaged into one step.
    epochs_per_message : int
        The most epochs that a participant trains its own model before it answers.
    noise : {"per-image", "per-batch"}
        One noise map for a whole batch is what the authors' code draws; averaging a batch
        removes it.
    aggregate : {"mean", "median", "trimmed-mean", "krum"}
        How replies become one.
    clip : float or None
        A reply whose norm is more than this many times the median norm is scaled down to it.
        1.5 still holds against one of five that sends −1000 times its gradient, 3 does not;
        ``null`` leaves Eq. (2) exactly as it is, and the door open.
    malicious : int
        How many hostile participants ``krum`` and ``trimmed-mean`` are to stand.
    min_participants : int
        With fewer answers than this the run stops, to be resumed.
    validate_every : int
        Measure on the noisy validation set after every so many epochs (Figure 4).
    order : {"listed", "alphabetical", "reverse", "random"} or list of str
        In which order participants update the generator; ``random`` anew in each epoch.
    dropouts : int
        So many participants, chosen at random, miss each epoch (Case 2 of Table 2).
    bystanders : list of str
        Ranked without having trained the generator (generalisation).
    late : dict of str to int
        First epoch of a participant that joins late.
    cheaters : list of str
        Train their model together with a noise generator of their own.
    hostile : dict of str to str
        Attack on the generator's training.
    stages : StagesConfig
        When they open and close; for a competition of one case.
    cases : dict of str to dict
        Several settings on the same trained models; each names what differs from the above.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

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
    def _cases_hold(self, info: ValidationInfo) -> ThemisConfig:
        self.resolve_cases(info)
        if len(self.each_case()) > 1 and self.stages != StagesConfig():
            raise ValueError("stages: a competition with stages has one case")
        once = self.release.draws == len(self.release_bounds) == 1 and not self.cheaters
        if self.stages.test.closes is not None and not once:
            raise ValueError(
                "stages: a test that closes has one release, for which all wait: set "
                "release.draws=1 and one release.M, and no cheaters"
            )
        return self

    @property
    def release_bounds(self) -> list[float]:
        """M at release, the official one first."""
        return self.release.M or [self.M]

    def check(self, names: list[str]) -> None:
        """Check the settings against the participants' names.

        Raises
        ------
        RequestError
            A name that is not a participant's, or more absent participants than there are.
        """
        for case, settings in self.each_case().items():
            settings._check_names(case, names)
            trainers = [name for name in names if name not in settings.bystanders]
            if settings.dropouts >= len(trainers):
                raise RequestError(
                    f"themis.dropouts (case '{case}'): {settings.dropouts} dropouts per epoch, but "
                    f"only {len(trainers)} participants train the generator; "
                    f"allowed: 0 to {len(trainers) - 1}"
                )
            if settings.min_participants > len(trainers) - settings.dropouts:
                raise RequestError(
                    f"themis.min_participants (case '{case}'): {settings.min_participants}, but "
                    f"at most {len(trainers) - settings.dropouts} participants can answer"
                )

    def _check_names(self, case: str, names: list[str]) -> None:
        listed = self.order if isinstance(self.order, list) else []
        for key, used in {
            "bystanders": self.bystanders,
            "late": self.late,
            "cheaters": self.cheaters,
            "hostile": self.hostile,
            "order": listed,
        }.items():
            for name in used:
                if name not in names:
                    raise RequestError(
                        f"themis.{key} (case '{case}'): no participant is called '{name}'; "
                        f"allowed: {', '.join(names)}"
                    )
        if listed and sorted(listed) != sorted(names):
            raise RequestError(
                f"themis.order (case '{case}'): must name every participant exactly once: "
                f"{', '.join(names)}"
            )
