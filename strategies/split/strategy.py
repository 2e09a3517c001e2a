"""Split learning as a Flower strategy: fronts on the devices, the back here, a shield between."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from torch import nn

from pudica.clients import protocol
from pudica.clients.shields.front import Front
from pudica.models.compute import Compute, ComputeConfig
from pudica.models.errors import RequestError, unknown_name_error
from pudica.models.optimizers import OptimizerConfig, Optimizing
from pudica.models.settings import validate_settings
from pudica.strategies.core.result import RecordedResult
from pudica.strategies.core.session import CLOUD
from pudica.strategies.split.cloud import Chunk
from pudica.strategies.split.config import EXPERIMENT_ONLY, SplitConfig, StrategyConfig
from pudica.strategies.split.evaluation import (
    NOISY,
    CloudClassification,
    count_reader,
    log_counts,
    measuring_requests,
)
from pudica.strategies.split.fronts import MODES
from pudica.strategies.split.model import freeze_all_but_last
from pudica.strategies.split.once import ReleaseOnce
from pudica.strategies.split.state import SplitState
from pudica.strategies.split.turns import EPOCH, Exchange


class SplitLearning(SplitState):
    """Train a model whose front is on the devices, and whose back is here.

    A round is an epoch of the devices' images. In each turn devices send protected activations
    of their next batches and the labels; the back takes a step for each batch. The arrays are
    those of the whole model, ``front.…`` and ``back.…``. Where fronts are private, ``front.…`` is
    what they began with.

    Parameters
    ----------
    front, back : Module
        The model, cut. They are copied.
    fronts : {"average", "handoff", "private", "frozen"}
        ``average``: the fronts' gradients are averaged in each turn, which takes two exchanges;
        at one batch per message that is SGD on the union of the batches. ``handoff``: one front
        goes from device to device; an exchange fetches it. ``private``: each keeps its own.
        ``frozen``: none learns.
    release : {"every-step", "once"}
        ``once``, with frozen fronts: each example's activation is sent a single time, and the back
        is trained on what there is. That is no exchange after another: Flower's own
        ``Strategy.start`` can't do it.
    optimizer, front_optimizer : callable or OptimizerConfig, optional
        Make the optimisers of back and front, given parameters; by default SGD, 0.01, and the same
        for the front. Where fronts learn on the devices, a function must be given to each
        :class:`.Edge`, too, since no message holds one.
    batch_size : int
        Of each device; 64 by default.
    batches_per_message : int
        Above 1 a front learns from gradients at weights that are some batches old.
    wire : {"float32", "float16"}
        Of activations and gradients in messages.
    train : {"all", "last-layer"}
        ``last-layer``: nothing but the back's last layer learns; fronts must be frozen.
    fit : {"sgd", "means", "none"}
        With ``release="once"``, how the back is found: by training; if it is a single linear
        layer, from the classes' mean activations; or not at all, to compare with.
    dropouts : int
        So many devices, chosen at random, miss each epoch.
    validate_every : int
        Devices measure the model on their test images after every so many epochs, and after the
        last; 0: never.
    threads : int, optional
        PyTorch threads of the back.
    compute : ComputeConfig, optional
        Of the back.
    min_nodes, seed, record, patience
        As of :class:`.RecordedStrategy`. To go on with a record, devices need what they kept: on
        engines that keep it in memory only as long as their process lives, a front that learnt
        there is lost with it, and the log says so.

    Raises
    ------
    RequestError
        A setting that is unknown or out of range, by name.
    """

    def __init__(
        self,
        front: nn.Module,
        back: nn.Module,
        *,
        fronts: str = "average",
        release: str = "every-step",
        optimizer: Optimizing | None = None,
        front_optimizer: Optimizing | None = None,
        compute: ComputeConfig | None = None,
        min_nodes: int = 1,
        seed: int = 0,
        record: str | Path | None = None,
        patience: float | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(min_nodes=min_nodes, seed=seed, record=record, patience=patience)
        if fronts not in MODES:
            raise RequestError(f"SplitLearning: {unknown_name_error('fronts', str(fronts), MODES)}")
        given = {"front": fronts, "release": release, **settings}
        found = validate_settings(StrategyConfig, given, "SplitLearning", EXPERIMENT_ONLY)
        own = compute or ComputeConfig()
        own = own.model_copy(update={"threads": found.threads or own.threads})
        self._configure(
            found,
            copy.deepcopy(front),
            copy.deepcopy(back),
            Compute(own),
            (optimizer or OptimizerConfig(), front_optimizer or optimizer or OptimizerConfig()),
        )
        if found.train == "last-layer":
            freeze_all_but_last(self.back)

    @classmethod
    def of_experiment(
        cls, settings: SplitConfig, seed: int, front: Front, back: nn.Module, compute: Compute
    ) -> SplitLearning:
        """Return the strategy of one case of an experiment.

        Parameters
        ----------
        front : Front
            With the shield, which travels with the layers.
        """
        strategy = cls(nn.Identity(), nn.Identity(), min_nodes=settings.min_devices, seed=seed)
        optimizing = settings.optimizer, settings.front_optimizer or settings.optimizer
        strategy._configure(settings, front, back, compute, optimizing)
        strategy.evaluated = "validation"
        return strategy

    def begin_round(self) -> None:
        """Forget what happened in the epoch before."""
        super().begin_round()
        self.devices.costs.begin_epoch()
        self.loss, self.examples = 0.0, 0
        self.answered.clear()

    # ----------------------------------------------------------------- Flower's hooks: train

    def configure_train(
        self,
        server_round: int,  # noqa: ARG002
        arrays: ArrayRecord,
        config: ConfigRecord,
        grid: Grid,
    ) -> Iterable[Message]:
        """Return the requests of the next exchange."""
        if self.settings.release == "once":
            raise RequestError(
                "SplitLearning: release='once' is not one exchange after another; call its own "
                "start"
            )
        self.prepare(grid, arrays)
        self.count_exchanges()
        exchange = self._exchanges[self.done]
        requests = self._requests(exchange)
        for content in requests.values() if config else ():
            content["config"] = ConfigRecord({**config, **content.config_records["config"]})
        return self.cohort.messages(exchange.kind, requests)

    def _requests(self, exchange: Exchange) -> dict[str, RecordDict]:
        names = [name for name in exchange.names if name in self.cohort.nodes]
        if exchange.kind != protocol.SMASH:
            return self.fronts.requests(names)
        self._keep = self.devices.fresh or self.recorder.is_checkpoint_due()
        where = exchange.turn, exchange.epoch, exchange.step
        return {name: self.smash_request(name, *where, self._keep) for name in names}

    def aggregate_train(
        self,
        server_round: int,  # noqa: ARG002
        replies: Iterable[Message],
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Let the back learn from activations, or the front from what devices make of gradients."""
        exchange = self._exchanges[self.done]
        if exchange.kind == protocol.SMASH:
            self._learn(replies, exchange)
        else:
            found = self.read(replies, exchange.kind, self.fronts.read)
            self.fronts.take(found, exchange.epoch)
        metrics = self.step_done()
        return self.new_arrays(), metrics

    def _learn(self, replies: Iterable[Message], exchange: Exchange) -> None:
        def read(name: str, content: RecordDict) -> Chunk:
            each = self.settings.batches_per_message
            return self.read_chunk(name, content, self.devices.sizes(name, exchange.step, each))

        chunks = self.read(replies, protocol.SMASH, read)
        self.fronts.note_answers(chunks)
        for name, chunk in chunks.items():
            self.accept(name, chunk)
        if not chunks:
            return
        self.answered.update(chunks)
        loss, gradients = self.cloud.learn(chunks, exchange.epoch, exchange.turn)
        self.loss += loss
        self.examples += sum(len(chunk.labels) for chunk in chunks.values())
        self.fronts.learn(gradients, exchange.turn)

    def end_round(self) -> MetricRecord:
        """Log loss, dropouts and bytes of an epoch."""
        done = self.round + 1
        self.cohort.require_min_replies(self.min_nodes, len(self.answered), f"split ({self.case})")
        loss = self.loss / self.examples
        self.log(self.stage, "loss", loss, CLOUD, round=done)
        for name, count in self.cohort.dropouts.items():
            self.log(self.stage, "dropouts", count, name, round=done)
        self.devices.log_bytes(self.activation, done)
        if self.fronts.is_handed_on and (self.evaluated == "test" or self.settings.validates(done)):
            self.fronts.flush(done * EPOCH - 1)  # so that the arrays hold it
        return MetricRecord({"loss": loss, "num-examples": self.examples})

    def end_training(self) -> None:
        """Bring the last gradients to the fronts, and write down what devices spent."""
        self.fronts.flush(self.round * EPOCH - 1)
        self.devices.costs.write(self.case)

    # -------------------------------------------------------------- Flower's hooks: evaluate

    def is_evaluation_due(self, last: bool) -> bool:
        """Tell whether devices measure the model after this epoch."""
        if not self.round or not self.settings.validate_every:
            return False
        if self.evaluated == "test":  # of somebody's own app
            return last or self.settings.validates(self.round)
        return self.settings.fit == "sgd" and self.settings.validates(self.round)

    def configure_evaluate(
        self,
        server_round: int,  # noqa: ARG002
        arrays: ArrayRecord,  # noqa: ARG002
        config: ConfigRecord,
        grid: Grid,  # noqa: ARG002
    ) -> Iterable[Message]:
        """Let devices measure the whole model, with their own front or the common one."""
        if self.done or not self.settings.validate_every:
            return []  # Flower's own start asks after each exchange
        self.fronts.flush(self.round * EPOCH - 1)
        requests = measuring_requests(self, self.evaluated, self.round, config)
        return self.cohort.messages(protocol.WHOLE, requests)

    def aggregate_evaluate(
        self,
        server_round: int,  # noqa: ARG002
        replies: Iterable[Message],
    ) -> MetricRecord | None:
        """Log each device's accuracy, without and with noise; return those over all images."""
        counts = self.read(replies, protocol.WHOLE, count_reader(self, self.evaluated))
        found = log_counts(self, self.evaluated, self.round, counts)
        return MetricRecord({f"accuracy-{k}": v for k, v in found.items()}) if found else None

    # ------------------------------------------------------------------------ the loop

    def classify(self, grid: Grid, timeout: float = 3600) -> dict[str, float]:
        """Classify the devices' test images here, from activations behind their shields.

        A device says how many were right once all of its images are classified; labels stay there.

        Returns
        -------
        dict of str to float
            The accuracy of each device that reports.
        """
        with self._recorded(grid, timeout):
            self.fronts.flush(self.round * EPOCH - 1)
            return CloudClassification(self, NOISY).measure(self.round)

    def run_round(
        self,
        arrays: ArrayRecord,
        config: ConfigRecord | None = None,
        timeout: float | None = None,
        num_rounds: int = 1,
    ) -> ArrayRecord:
        """Make the exchanges of an epoch that are left; return the arrays after it."""
        # Others' hooks get the arrays after each exchange; to pack a large model takes long.
        self._is_alone = type(self) is SplitLearning
        try:
            return super().run_round(arrays, config, timeout, num_rounds)
        finally:
            self._is_alone = False

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
        """Train all epochs, from the last checkpoint on; see :meth:`.RecordedStrategy.start`."""
        if self.settings.release == "once":
            with self._recorded(grid, timeout):
                if not self._resume():
                    self.load_arrays(initial_arrays or self.initial_arrays())
                for _ in ReleaseOnce(self).train(num_rounds):
                    config = evaluate_config or ConfigRecord()
                    self._evaluate(
                        self.arrays(), self.round == num_rounds, config, timeout, evaluate_fn
                    )
                self.result.arrays, self.result.rows = self.arrays(), self.recorder.rows
            return self.result
        return super().start(
            grid, initial_arrays, num_rounds, timeout, train_config, evaluate_config, evaluate_fn
        )
