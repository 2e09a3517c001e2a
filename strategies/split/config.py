"""The ``split`` section of an experiment."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    model_validator,
)

from pudica.clients.assignments import Fronts, Wire
from pudica.clients.data import DataConfig
from pudica.clients.shields import AnyShield, find_shield
from pudica.clients.shields.mixing import MixingConfig
from pudica.clients.shields.obfuscation import NoShieldConfig
from pudica.models.custom import ModelName
from pudica.models.files import file_unless
from pudica.models.optimizers import OptimizerConfig
from pudica.models.training import TrainingConfig
from pudica.strategies.core.cases import CasesConfig

PRETRAINED, TORCHVISION = "pretrained", "torchvision"


class PretrainingConfig(BaseModel):
    """A public data set on which the cloud trains the model beforehand.

    It is another set than the devices', with images of the same size and channels.

    Attributes
    ----------
    data : DataConfig
        The public data set.
    training : TrainingConfig
        How the whole model is trained on it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    data: DataConfig
    training: TrainingConfig = TrainingConfig()


class BudgetConfig(BaseModel):
    """What all releases of an example together may cost, for a record.

    Attributes
    ----------
    epsilon : float, in ε of one record
        What all releases of an example may add up to.
    delta : float
        The δ that goes with ε.
    releases : int or None, in releases
        How often an example may be released. None: as often as the experiment does.
    report : float or None, in ε of one record
        The ε of each answer to how often models were right on a device's validation or test
        images, out of the budget of these images. None: all of it that the part has left, for
        all answers alike; a fifth, where test activations are sent, too.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    epsilon: float = Field(gt=0)
    delta: float = Field(default=1e-5, gt=0, lt=1)
    releases: int | None = Field(default=None, ge=1)
    report: float | None = Field(default=None, gt=0)


class SplitConfig(CasesConfig):
    """A model between devices and cloud, and how it is trained.

    Attributes
    ----------
    devices : int, in devices
        How many there are; the training data are divided among them by ``data.partition``,
        by default evenly at random.
    model : str
        A name of the zoo, ``custom:FILE.py:callable`` or ``torchvision:NAME``.
    cut : str
        The layer after which the model is cut (``pudica cuts MODEL`` lists them; ``input``: before
        the first). In quotes, if it looks like a number.
    shield : ShieldConfig
        What protects activations before they leave a device.
    noise : {"seeded", "secret"}
        Drawn from the run's seed, which can be repeated and subtracted; or from keys that
        the devices draw and keep.
    front : {"average", "handoff", "private", "frozen"}
        What becomes of the fronts, which :class:`.SplitLearning` calls ``fronts``. ``average``:
        their gradients are averaged in each turn. ``handoff``: one front goes from device to
        device. ``private``: each device keeps its own. ``frozen``: none learns.
    release : {"every-step", "once"}
        ``every-step``: each activation is sent in each epoch. ``once``, with frozen fronts: a
        single time, and the cloud trains on what there is.
    batch_size : int, in images
        How many images a step takes on each device.
    batches_per_message : int, in batches
        How many batches a message holds; above 1 a front learns from gradients at weights that are
        some batches old.
    wire : {"float32", "float16"}
        The type of activations and gradients in messages.
    epochs : int, in epochs
        How often training goes through the devices' images.
    optimizer : OptimizerConfig
        What trains the back.
    front_optimizer : OptimizerConfig or None
        What trains the fronts. None: the same as the back.
    weights : str or None
        Start from a safetensors file, from ``pretraining`` (``pretrained``), or from what
        torchvision publishes for its models (``torchvision``). A layer whose shape differs, as
        the last with other classes, starts afresh. None: all do.
    train : {"all", "last-layer"}
        What learns; ``last-layer``: nothing but the back's last layer, for frozen fronts.
    pretraining : PretrainingConfig or None
        A public data set on which the cloud trains the model beforehand.
    budget : BudgetConfig or None
        What all releases of an example together may cost. The shield's noise follows from it; for
        shields that protect a record.
    fit : {"sgd", "means", "none"}
        How the back is found; the last two with ``release: once``. ``sgd``: by training.
        ``means``: a single linear layer, from the classes' mean activations. ``none``: not at all,
        to compare with.
    classify : list of {"edge", "cloud"} or None
        Who classifies the test images in the end: the devices, which are given the back, or
        the cloud, which is sent activations. None: both; with a budget the devices alone, since
        what is sent of a test image is paid for, too.
    plain_to_cloud : bool
        Also send test activations without noise, to compare. Never for real: it gives them
        away.
    threads : int or None, in threads
        PyTorch threads of the cloud, on which results depend. None: as ``client.threads``.
    validate_every : int, in epochs
        The model is measured on the devices' validation images after every so many epochs, and
        after the last; 0: never.
    min_devices : int, in devices
        With fewer answers than this the run stops, to be resumed.
    dropouts : int, in devices
        So many devices, chosen at random, miss each epoch.
    cases : dict of str to dict
        Several settings on the same data; each names what differs from the above.
    """

    shared_by_cases = frozenset({"devices", "pretraining"})

    devices: int = Field(default=4, ge=1, le=10_000)
    model: ModelName = "cnn-tiny"
    cut: str = "2"
    shield: AnyShield = NoShieldConfig()
    noise: Literal["seeded", "secret"] = "seeded"
    front: Fronts = "average"
    release: Literal["every-step", "once"] = "every-step"
    batch_size: int = Field(default=64, ge=1)
    batches_per_message: int = Field(default=1, ge=1)
    wire: Wire = "float32"
    epochs: int = Field(default=10, ge=1)
    optimizer: OptimizerConfig = OptimizerConfig()
    front_optimizer: OptimizerConfig | None = None
    weights: Annotated[str, file_unless(PRETRAINED, TORCHVISION)] | None = None
    train: Literal["all", "last-layer"] = "all"
    pretraining: PretrainingConfig | None = None
    budget: BudgetConfig | None = None
    fit: Literal["sgd", "means", "none"] = "sgd"
    classify: list[Literal["edge", "cloud"]] | None = None
    plain_to_cloud: bool = False
    threads: int | None = Field(default=None, ge=1, le=1024)
    validate_every: int = Field(default=1, ge=0)
    min_devices: int = Field(default=1, ge=1)
    dropouts: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _fits_together(self, info: ValidationInfo) -> Self:
        self._check_front()
        self._check_numbers()
        if isinstance(self.shield, MixingConfig):
            raise ValueError(
                "shield: 'mixing' leaves no label that would be that of a row; it is for facemix"
            )
        if self.weights == PRETRAINED and not self.pretraining:
            raise ValueError("weights: 'pretrained' needs a section pretraining")
        if self.plain_to_cloud and self.budget:
            raise ValueError("plain_to_cloud: with a budget nothing is sent without noise")
        if self.shield.name == "batch-norm-laplace" and self.batch_size == 2:
            raise ValueError(
                "batch_size: 2 leaves a batch of one example where their number is odd, which has "
                "no variance; allowed with this shield: 3 or more"
            )
        if self.budget:
            self._check_reports(self.budget)
        if self.fit != "sgd" and self.release != "once":
            raise ValueError(f"fit: '{self.fit}' needs release: once")
        self.resolve_cases(info)
        return self

    def _check_front(self) -> None:
        if self.release == "once" and self.front != "frozen":
            raise ValueError(
                f"release: 'once' needs front: frozen, is '{self.front}': a front that learns "
                "gives other activations in each epoch"
            )
        if self.train == "last-layer" and self.front != "frozen":
            raise ValueError(f"train: 'last-layer' needs front: frozen, is '{self.front}'")
        if self.front == "frozen" and find_shield(self.shield.name).has_penalty():
            raise ValueError(
                f"shield: '{self.shield.name}' adds to the loss of the front, and front: frozen "
                "learns nothing; allowed: average, handoff, private"
            )
        if self.budget and self.front != "frozen":
            raise ValueError(
                f"budget: needs front: frozen, is '{self.front}': a front that learns from the "
                "data without noise has no guarantee to spend"
            )

    def _check_reports(self, budget: BudgetConfig) -> None:
        each, times = budget.report or 0.0, max(self.validations, len(self.classifiers))
        if each * times > budget.epsilon or (self.test_releases and each * times == budget.epsilon):
            raise ValueError(
                f"budget.report: {times} answers of ε = {each:g} are more than the budget of the "
                f"images that they are about, {budget.epsilon:g}; lower it, or raise "
                "validate_every"
            )

    def _check_numbers(self) -> None:
        if self.dropouts >= self.devices:
            raise ValueError(
                f"dropouts: {self.dropouts} of {self.devices} devices; "
                f"allowed: 0 to {self.devices - 1}"
            )
        if self.min_devices > self.devices - self.dropouts:
            raise ValueError(
                f"min_devices: {self.min_devices}, but at most {self.devices - self.dropouts} "
                "devices can answer"
            )
        if self.budget and self.budget.releases and self.budget.releases < self.releases:
            raise ValueError(
                f"budget.releases: {self.budget.releases}, but {self.epochs} epochs release each "
                f"example {self.releases} times; raise it, lower epochs, or set release: once"
            )

    @property
    def releases(self) -> int:
        """How often the experiment releases each training example."""
        if self.fit == "none":
            return 0
        return 1 if self.release == "once" else self.epochs

    @property
    def classifiers(self) -> list[Literal["edge", "cloud"]]:
        """Who classifies the test images."""
        if self.classify is None:
            return ["edge"] if self.budget else ["edge", "cloud"]
        return self.classify

    @property
    def test_releases(self) -> int:
        """How often test activations are sent to be classified, with noise and without."""
        return (1 + self.plain_to_cloud) if "cloud" in self.classifiers else 0

    @property
    def test_answers(self) -> int:
        """How often right answers on test images are counted, on devices and for the cloud."""
        return ("edge" in self.classifiers) + self.test_releases

    def validates(self, epoch: int) -> bool:
        """Tell whether the validation images are measured after so many epochs."""
        every = self.validate_every
        return bool(every) and (epoch % every == 0 or epoch == self.epochs)

    @property
    def validations(self) -> int:
        """How often the validation images are measured."""
        if self.fit != "sgd":
            return 0
        return sum(self.validates(epoch + 1) for epoch in range(self.epochs))


# Of the ``split`` section: what organises a whole experiment, or what nodes say themselves.
EXPERIMENT_ONLY = frozenset(
    {"devices", "model", "cut", "shield", "noise", "epochs", "weights", "pretraining", "budget"}
    | {"classify", "plain_to_cloud", "min_devices", "cases", "optimizer", "front_optimizer"}
)


class StrategyConfig(SplitConfig):
    """The settings of a strategy, which does not know yet how many devices there are."""

    devices: int = 10_000

    def validates(self, epoch: int) -> bool:
        """Tell whether devices measure the model after so many epochs, the last one aside."""
        return bool(self.validate_every) and epoch % self.validate_every == 0
