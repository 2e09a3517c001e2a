"""FaceMix as a Flower strategy: three stages, trained and served behind mixing (paper 003)."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from torch import nn

from pudica.clients.data import DataError, ImageSet
from pudica.clients.facemix.images import AttributeImages, name_attributes
from pudica.clients.facemix.terms import shield_settings
from pudica.clients.shields import Shield, ShieldConfig
from pudica.clients.shields.stages import StagedModel
from pudica.models import optimizers
from pudica.models.compute import Compute, ComputeConfig
from pudica.models.errors import RequestError
from pudica.models.optimizers import OptimizerFactory
from pudica.models.packing import select_prefix
from pudica.strategies.core.result import RecordedResult
from pudica.strategies.facemix.cloud import StagedStrategy
from pudica.strategies.facemix.config import EXPERIMENT_ONLY, FacemixConfig, read_settings
from pudica.strategies.facemix.costs import COSTS, log_costs
from pudica.strategies.facemix.serving import SERVING, Serving, ServingResult
from pudica.strategies.facemix.training import (
    CentralTrainer,
    SplitTrainer,
    Trainer,
    count_on_validation,
    log_rates,
)


class FaceMix(StagedStrategy):
    """Train a model in three stages and serve it to edges that mix what they send (FaceMix).

    ``post(main(pre(x)))`` of Eq. (2) of paper 003: the edges run ``pre`` and ``post`` on their own
    images, the cloud runs ``main`` on mixtures of their features (§3.4, §3.5). A round is an epoch,
    and the model learns behind the same mixing. The arrays are ``pre.*``, ``main.*`` and
    ``post.*``, as in the modules' ``state_dict``; they change at the end of a round.

    Parameters
    ----------
    pre, main, post : Module
        The stages, whose weights the training begins with; they are copied. ``post`` gives logits
        (B, A·K): of A questions with K answers each, two for attributes that an image has or not;
        one question with as many answers as there are classes.
    mixing : Mixing or mapping, optional
        Settings of the mixing that the model learns behind, the same as on the edges; by default
        groups of eight.
    train, validation : Dataset, optional
        The model owner's own images, map-style, of pairs of an image (C, H, W) and a label: a
        class, or a vector (A,) of answers. With ``train`` the owner trains alone, an epoch is one
        exchange of no messages, and edges are only served. Without, edges and cloud train
        together (split training): each batch takes three exchanges, and a step is that of central
        training on all edges' batches.
    attributes : list of str, optional
        Names of the questions; by default what edges say as they join.
    batch_size : int
        Images of a training batch, on each edge.
    optimizer : OptimizerConfig, mapping or callable
        ``{"name": "adam", "learning_rate": 1e-3}``, or a factory that is given the parameters of
        all three stages and returns a torch optimiser.
    schedule : {"cosine", "step"}
        Of the learning rate: half a cosine wave to 0 over all rounds, or as the optimiser's
        ``step_size`` says; a factory's rate then stays as it is.
    epochs : int, optional
        Length of the cosine; by default as many rounds as :meth:`start` makes. Flower's own
        ``Strategy.start`` needs it.
    class_weights : {"none", "balanced"}
        Whether all answers to a question count the same, however many images have it.
    augment : {"none", "crop-flip", "handwriting"}
        Of training images in [0, 1].
    request : int
        Images of a request.
    batch : int
        The most images that the cloud computes at once, of all edges' requests.
    wire : {"float32", "float16"}
        Of what crosses.
    report : bool
        Whether edges are asked how often they were right; what they predict stays there.
    evaluate_every : int
        Measure on the owner's validation images after every so many rounds, and at the end.
    compute : ComputeConfig, optional
        Device and precision of the cloud.
    min_nodes, seed, record, patience
        As of :class:`.RecordedStrategy`.

    Raises
    ------
    RequestError
        A setting that is unknown or out of range, by name.
    DataError
        Data sets without images or labels.

    Examples
    --------
    >>> strategy = FaceMix(pre, main, post, min_nodes=2, optimizer={"name": "adam"})
    >>> result = strategy.start(grid, num_rounds=20)
    >>> strategy.serve(grid, result.arrays).frame()
    """

    total = count = 0.0
    _factory: OptimizerFactory | None = None
    _optimizer: torch.optim.Optimizer | None = None
    _trainer: Trainer | None = None

    def __init__(
        self,
        pre: nn.Module,
        main: nn.Module,
        post: nn.Module,
        *,
        mixing: Shield | ShieldConfig | Mapping[str, Any] | None = None,
        train: Any = None,
        validation: Any = None,
        attributes: Sequence[str] | None = None,
        compute: ComputeConfig | None = None,
        min_nodes: int = 1,
        seed: int = 0,
        record: str | Path | None = None,
        patience: float | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(min_nodes=min_nodes, seed=seed, record=record, patience=patience)
        own = _read_images(train, "train")
        self.images, self.validation = own, _read_images(validation, "validation")
        self.attributes = name_attributes(attributes, own.questions if own else 0)
        if callable(settings.get("optimizer")):
            self._factory = settings.pop("optimizer")
        self._has_own_epochs = self._has_epochs = settings.get("epochs") is not None
        how = "split" if train is None else "central"
        given = {"train": how, "shield": shield_settings(mixing)}
        self._configure(read_settings(settings, given), Compute(compute or ComputeConfig()))
        self._stages = tuple(copy.deepcopy(stage) for stage in (pre, main, post))

    @classmethod
    def of_experiment(
        cls,
        settings: FacemixConfig,
        model: StagedModel,
        *,
        seed: int,
        attributes: list[str],
        compute: Compute,
        images: tuple[ImageSet, ImageSet],
    ) -> Self:
        """Return the strategy of one case; ``images`` are the owner's, of train and validation."""
        stages = model.pre, model.main, model.post
        strategy = cls(*stages, min_nodes=settings.min_edges, seed=seed)
        strategy._stages = stages
        strategy._configure(settings, compute)
        strategy._has_own_epochs = strategy._has_epochs = True
        if settings.train == "central":
            strategy.images, strategy.validation = images
        strategy.attributes = attributes
        strategy.adopt_model(model)
        return strategy

    def _configure(self, settings: FacemixConfig, compute: Compute) -> None:
        self.settings, self.compute = settings, compute
        self.unit = "exchange" if settings.train == "split" else "epoch"

    def adopt_model(self, model: StagedModel) -> None:
        """Take a model with its shield; steps are made anew for it and for the edges there are."""
        super().adopt_model(model)
        self._trainer = None

    @property
    def trainer(self) -> Trainer:
        """What makes steps of exchanges."""
        if self._trainer is None:
            self._trainer = self.make_trainer()
        return self._trainer

    def make_trainer(self) -> Trainer:
        """Return what makes steps: the owner alone, or edges and cloud together."""
        return CentralTrainer(self) if self.settings.train == "central" else SplitTrainer(self)

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimiser of all three stages."""
        if self._optimizer is None:
            raise RuntimeError("the training has not begun: it has no arrays yet")
        return self._optimizer

    def _make_optimizer(self) -> None:
        chosen = self._factory or self.settings.training.optimizer
        built = optimizers.build(chosen, self.model.parameters())
        if not isinstance(built, torch.optim.Optimizer):
            count = sum(p.requires_grad for p in self.model.parameters())
            raise RequestError(
                "optimizer: must be a torch.optim.Optimizer over what is to be trained; there are "
                f"{count} parameters, and the optimizer is a {type(built).__name__}"
            )
        self._optimizer = built
        self._first_rates = [group["lr"] for group in built.param_groups]

    def _set_learning_rate(self) -> None:
        training = self.settings.training
        for group, rate in zip(self.optimizer.param_groups, self._first_rates, strict=True):
            group["lr"] = training.scale_rate(rate, self.round)

    def settings_to_record(self) -> dict[str, Any]:
        """Return the settings as in the ``facemix`` section; stages have a size, not a name."""
        chosen = self.settings.model_dump(mode="json", exclude=set(EXPERIMENT_ONLY))
        del chosen["training"]["epochs"]  # the number of rounds: see _check_epochs
        if self._factory is not None:
            chosen["training"]["optimizer"] = "of its own"
        sizes = [sum(p.numel() for p in stage.parameters()) for stage in self._stages]
        pre, _, post = (f"{size} parameters" for size in sizes)
        stages = {"model": f"{sum(sizes)} parameters", "pre": pre, "post": post}
        return {**chosen, **stages, "edges": self.min_nodes, "min_edges": self.min_nodes}

    # -------------------------------------------------------------- the state of training

    def load_arrays(self, arrays: ArrayRecord) -> None:
        """Begin with these stages, and with a fresh optimiser."""
        self.replace_arrays(arrays)
        self._make_optimizer()

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return stages and optimiser."""
        state = optimizers.optimizer_state(self.optimizer).items()
        optimizer = {f"optimizer/{key}": value for key, value in state}
        return self.model_tensors() | optimizer | self.trainer.tensors()

    def note(self) -> dict[str, Any]:
        """Return the sum of the round's losses so far."""
        return {"total": self.total, "count": self.count}

    def load_state(self, tensors: Mapping[str, torch.Tensor], note: Mapping[str, Any]) -> None:
        """Go back to a checkpoint."""
        self.load_model(tensors)
        self._make_optimizer()
        optimizers.load_optimizer_state(self.optimizer, select_prefix("optimizer/", tensors))
        self.trainer.load(tensors)
        self.total, self.count = note["total"], note["count"]

    def save_checkpoint(self) -> None:
        """Save a checkpoint, but not in the middle of a batch."""
        if not self.done or self.done % self.trainer.per_batch == 0:
            super().save_checkpoint()

    def add_loss(self, loss: float, images: int) -> None:
        """Count in the mean loss of some images of the round."""
        self.total, self.count = self.total + loss * images, self.count + images

    # ------------------------------------------------------------------------- the loop

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord | None = None,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None = None,
    ) -> RecordedResult:
        """Train for so many epochs; as of :meth:`.RecordedStrategy.start`."""
        if not self._has_own_epochs and num_rounds:
            training = self.settings.training.model_copy(update={"epochs": num_rounds})
            self.settings = self.settings.model_copy(update={"training": training})
            self._has_epochs = True
        return super().start(
            grid, initial_arrays, num_rounds, timeout, train_config, evaluate_config, evaluate_fn
        )

    def count_exchanges(self) -> int:
        """Return how many exchanges an epoch takes."""
        return self.trainer.count_exchanges()

    def begin_round(self) -> None:
        """Forget the losses of the epoch before."""
        super().begin_round()
        self.total = self.count = 0.0

    def end_round(self) -> MetricRecord:
        """Log the mean loss of an epoch; RequestError if it is not finite."""
        loss, done = self.total / self.count, self.round + 1
        if not math.isfinite(loss):
            raise RequestError(
                f"training diverged in epoch {done}, the loss is {loss}; lower "
                f"training.optimizer.learning_rate"
            )
        self.log(self.stage, "loss", loss, round=done)
        return MetricRecord({"loss": loss})

    def configure_train(
        self,
        server_round: int,  # noqa: ARG002
        arrays: ArrayRecord,
        config: ConfigRecord,
        grid: Grid,
    ) -> Iterable[Message]:
        """Return the requests of the next exchange: mixtures, losses, or gradients of the ends."""
        self.prepare(grid, arrays)
        self._check_epochs()
        self._set_learning_rate()
        self._config = dict(config)
        return self.cohort.messages(*self.trainer.requests())

    def _check_epochs(self) -> None:
        """Check that the learning rate falls over as many rounds as when the record was begun."""
        training = self.settings.training
        if training.schedule != "cosine":
            return
        if not self._has_epochs:
            raise RequestError(
                "FaceMix: epochs: Flower's own start does not say how many rounds there are; give "
                "FaceMix(..., epochs=…), over which the learning rate falls, or schedule='step'"
            )
        begun = self.recorder.note.setdefault("epochs", {}).setdefault(self.case, training.epochs)
        if begun != training.epochs:
            raise RequestError(
                f"num_rounds: {training.epochs}, and this run was begun for {begun}, over which "
                "the learning rate falls; go on with as many, or start another with schedule='step'"
            )

    def aggregate_train(
        self,
        server_round: int,  # noqa: ARG002
        replies: Iterable[Message],
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Take the replies; the arrays change at the end of an epoch."""
        self.trainer.handle_replies(replies)
        metrics = self.step_done()
        return (None if metrics is None else self.new_arrays()), metrics

    def is_evaluation_due(self, last: bool) -> bool:
        """Tell whether the owner evaluates after this epoch."""
        return self.round > 0 and (last or self.round % self.settings.evaluate_every == 0)

    def aggregate_evaluate(
        self,
        server_round: int,  # noqa: ARG002
        replies: Iterable[Message],  # noqa: ARG002
    ) -> MetricRecord | None:
        """Evaluate on the owner's validation images, with the shield and without."""
        if self.done or self.validation is None or not len(self.validation):
            return None
        rates = MetricRecord()
        for shielded in ("on", "off"):
            counts = count_on_validation(self, shielded == "on")
            rates[f"accuracy-{shielded}"] = log_rates(self, "validation", counts, shield=shielded)
        return rates

    # -------------------------------------------------------------------------- serving

    def serve(
        self, grid: Grid, arrays: ArrayRecord | None = None, *, timeout: float = 3600
    ) -> ServingResult:
        """Answer all requests of all edges, several of them from one batch.

        Edges are given the first and the last stage. Each asks at its own pace; an answer and the
        next request share a message. Predictions stay with them.

        Parameters
        ----------
        arrays : ArrayRecord, optional
            The stages; by default as trained so far, or else as they were given.
        timeout : float
            Seconds for an edge to reply, and for edges to be there.

        Raises
        ------
        TooFewParticipants
            Fewer than ``min_nodes`` were served.
        RequestError
            Arrays that do not fit.
        """
        with self._recorded(grid, timeout):
            if arrays is not None:
                self.replace_arrays(arrays)
            elif self._optimizer is None:
                self._resume()
            return self._serve_once()

    def _serve_once(self) -> ServingResult:
        """Serve, unless these stages have been served already, by the record."""
        task, recorder = f"{SERVING}/{self.case}", self.recorder
        stages = hashlib.blake2b(digest_size=16)
        for value in self.stage_state().values():
            stages.update(value.cpu().numpy().tobytes())
        done = recorder.result(task) if recorder.is_finished(task) else {}
        if done.get("stages") == stages.hexdigest():
            kinds = {(stage, self.case) for stage in (COSTS, SERVING, "test")}
            rows = [row for row in recorder.rows if (row["stage"], row.get("case")) in kinds]
            return ServingResult(rows, {n: np.array(c) for n, c in done["counts"].items()})
        before = len(recorder.rows)
        log_costs(self)
        counts = Serving(self).run()
        kept = {name: each.tolist() for name, each in counts.items()}
        recorder.finish(task, stages=stages.hexdigest(), counts=kept)
        return ServingResult(recorder.rows[before:], counts)


def _read_images(dataset: Any, what: str) -> AttributeImages | None:
    if dataset is None:
        return None
    images = AttributeImages(dataset, what)
    if not images.questions:
        raise DataError(f"{what}: must yield pairs (image, label), there are no labels")
    return images
