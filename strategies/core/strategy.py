"""What our Flower strategies share: rounds of several exchanges, a record, a resume."""

from __future__ import annotations

import secrets
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from logging import INFO
from pathlib import Path
from typing import Any, TypeVar

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.common.logger import log
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from pudica.models.errors import RequestError
from pudica.models.packing import select_prefix
from pudica.strategies.core.cases import MAIN
from pudica.strategies.core.cohort import Cohort, Read
from pudica.strategies.core.experiment import ClientConfig
from pudica.strategies.core.joining import agree_on_images, join_own_apps
from pudica.strategies.core.members import Member
from pudica.strategies.core.recorder import MemoryRecorder, Recorder
from pudica.strategies.core.result import RecordedResult, RunDescription

T = TypeVar("T")


class RecordedStrategy(Strategy):
    """Base of our strategies; subclasses fill in Flower's hooks.

    A round may take several exchanges: :meth:`start` makes them all, while Flower's own
    ``Strategy.start`` takes one exchange for a round and comes to the same arrays.

    Parameters
    ----------
    min_nodes : int
        With fewer nodes, or replies, training stops; it waits for so many at the start.
    seed : int
        Of everything that is drawn here.
    record : str or Path, optional
        A directory to which the run is written, and from which it goes on: with the same
        settings, to the same result as an undisturbed run. Without it nothing is written.
    patience : float, optional
        Seconds for which a node may be away; see :class:`.ReliableGrid`.
    """

    system: str
    stage = "training"
    title = "training"
    unit = "exchange"
    saves_every_round = True  # however short rounds are

    def __init__(
        self,
        *,
        min_nodes: int = 1,
        seed: int = 0,
        record: str | Path | None = None,
        patience: float | None = None,
    ) -> None:
        if min_nodes < 1:
            raise RequestError(f"min_nodes: must be 1 or more, is {min_nodes}")
        self.min_nodes = min_nodes
        self.seed = seed
        self.record = Path(record) if record else None
        self.patience = patience
        self.case = MAIN
        self.round = self.done = self._evaluated = 0
        self.result = RecordedResult()
        self._cohort: Cohort | None = None
        self._members: dict[str, Member] = {}
        self._sent: ArrayRecord | None = None
        self._is_own = True

    @abstractmethod
    def settings_to_record(self) -> dict[str, Any]:
        """Return everything that decides the result but seed and number of rounds."""

    @abstractmethod
    def initial_arrays(self) -> ArrayRecord:
        """Return the arrays to begin with, once nodes have joined."""

    @abstractmethod
    def count_exchanges(self) -> int:
        """Return how many exchanges the current round takes."""

    @abstractmethod
    def load_arrays(self, arrays: ArrayRecord) -> None:
        """Take over arrays, from the caller or a record.

        Raises
        ------
        RequestError
            Keys or shapes that do not fit, by name.
        """

    @abstractmethod
    def replace_arrays(self, arrays: ArrayRecord) -> None:
        """Go on with other arrays than an exchange has led to; optimisers stay as they are."""

    def log_start(self) -> None:
        """Log what there is to measure before the first round."""

    def begin_round(self) -> None:
        """Prepare a round."""
        self.cohort.reset_failures()
        self.cohort.dropouts.clear()

    @abstractmethod
    def end_round(self) -> MetricRecord:
        """Close a round, log its measurements, and return those of all nodes together."""

    def is_evaluation_due(self, last: bool) -> bool:  # noqa: ARG002
        """Tell whether nodes evaluate after the current round."""
        return True

    def configure_evaluate(
        self,
        server_round: int,  # noqa: ARG002
        arrays: ArrayRecord,  # noqa: ARG002
        config: ConfigRecord,  # noqa: ARG002
        grid: Grid,  # noqa: ARG002
    ) -> Iterable[Message]:
        """Ask nobody, unless a subclass does."""
        return []

    def aggregate_evaluate(
        self,
        server_round: int,  # noqa: ARG002
        replies: Iterable[Message],  # noqa: ARG002
    ) -> MetricRecord | None:
        """Return nothing: nobody was asked."""
        return None

    def is_checkpoint_due(self) -> bool:
        """Tell whether to take a checkpoint between two exchanges of a round."""
        return self.recorder.is_checkpoint_due()

    def end_training(self) -> None:
        """Do what is left once the last round is over."""

    def is_over(self) -> bool:
        """Tell whether to stop before the last round, with what there is."""
        return False

    @abstractmethod
    def tensors(self) -> dict[str, torch.Tensor]:
        """Return everything that the next exchange depends on, as tensors."""

    def note(self) -> dict[str, Any]:
        """Return what else it depends on, as JSON."""
        return {}

    @abstractmethod
    def load_state(self, tensors: Mapping[str, torch.Tensor], note: Mapping[str, Any]) -> None:
        """Put back what :meth:`tensors` and :meth:`note` returned."""

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
        """Run all rounds, from the last checkpoint on; arguments as in Flower.

        Parameters
        ----------
        initial_arrays : ArrayRecord, optional
            Made here if left out.
        timeout : float
            Seconds for a node to reply, and for nodes to be there.

        Raises
        ------
        TooFewParticipants
            Fewer than ``min_nodes`` are there, or reply.
        RequestError
            The arrays do not fit, or the record is of other settings.
        """
        configs = train_config or ConfigRecord(), evaluate_config or ConfigRecord()
        with self._recorded(grid, timeout):
            if not self._resume():
                self.load_arrays(initial_arrays or self.initial_arrays())
                if num_rounds:
                    self.log_start()
                    self._evaluate(self.arrays(), False, configs[1], timeout, evaluate_fn)
            arrays = self._sent = self.arrays()
            while self.round < num_rounds and (self.done or not self.is_over()):
                arrays = self.run_round(arrays, configs[0], timeout, num_rounds)
                last = self.round == num_rounds or self.is_over()
                self._evaluate(arrays, last, configs[1], timeout, evaluate_fn)
                if self.saves_every_round or self.is_checkpoint_due():
                    self.save_checkpoint()
                self._show_round(num_rounds)
            if self.round < num_rounds:
                self.recorder.event(f"{self.title}: {self.round} rounds, not more")
            if self._evaluated < self.round:  # it became the last after it was over
                self._evaluate(arrays, True, configs[1], timeout, None)
            self.end_training()
            self.result.arrays = arrays
            self.result.rows = self.recorder.rows
        return self.result

    def run_round(
        self,
        arrays: ArrayRecord,
        config: ConfigRecord | None = None,
        timeout: float | None = None,
        num_rounds: int = 1,
    ) -> ArrayRecord:
        """Make the exchanges of a round that are left; return the arrays after it."""
        current = self.round
        while self.round == current:
            arrays = self._exchange(arrays, config or ConfigRecord(), timeout, num_rounds)
            if self.done and self.is_checkpoint_due():
                self.save_checkpoint()
        return arrays

    def _exchange(
        self, arrays: ArrayRecord, config: ConfigRecord, timeout: float | None, num_rounds: int
    ) -> ArrayRecord:
        """Make one exchange; return the arrays after it."""
        grid, number = self.cohort.grid, self.round + 1
        messages = self.configure_train(number, arrays, config, grid)
        total = self.count_exchanges()
        replies = grid.send_and_receive(messages, timeout=timeout)
        following, _ = self.aggregate_train(number, replies)
        made = total * (number - 1) + (self.done or total)
        self.recorder.progress(f"{self.title} ({self.case})", made, total * num_rounds, self.unit)
        if self.done and self.is_over():
            self.finish_round()
        return arrays if following is None else following

    def finish_round(self) -> MetricRecord:
        """Close the current round; the next exchange begins another."""
        metrics = self.end_round()
        self.round, self.done = self.round + 1, 0
        self.result.train_metrics_clientapp[self.round] = metrics
        return metrics

    def step_done(self) -> MetricRecord | None:
        """Note that an exchange is over; close the round if it was the last."""
        self.done += 1
        return self.finish_round() if self.done >= self.count_exchanges() else None

    @abstractmethod
    def arrays(self) -> ArrayRecord:
        """Return the arrays as they are now."""

    def new_arrays(self) -> ArrayRecord:
        """Return the arrays that an exchange has led to; others, if they come back, are taken."""
        self._sent = self.arrays()
        return self._sent

    def prepare(self, grid: Grid, arrays: ArrayRecord) -> None:
        """See that nodes have joined and that these are the arrays to go on with.

        Flower's own ``start`` has called nothing before; wrappers change arrays in between.
        """
        if self._sent is None and self.record is not None:
            raise RequestError(
                "record: only the strategy's own start can resume; with Flower's own start, and in "
                "its wrappers, leave record out"
            )
        self.join(grid)
        if self._sent is None:
            self.load_arrays(arrays)
        elif self._sent is not arrays:
            self.replace_arrays(arrays)
        self._sent = arrays
        if not self.done:
            self.begin_round()

    def _evaluate(
        self, arrays: ArrayRecord, last: bool, config: ConfigRecord, timeout: float, measure: Any
    ) -> None:
        grid, is_due = self.cohort.grid, self.is_evaluation_due(last)
        if is_due:
            messages = list(self.configure_evaluate(self.round, arrays, config, grid))
            replies = grid.send_and_receive(messages, timeout=timeout)
            metrics = self.aggregate_evaluate(self.round, replies)
            if metrics is not None:
                self.result.evaluate_metrics_clientapp[self.round] = metrics
        if measure and (central := measure(self.round, arrays)) is not None:
            self.result.evaluate_metrics_serverapp[self.round] = central
            for metric, value in central.items():
                self.log("central", metric, value)  # type: ignore[arg-type]
        if is_due or last:
            self._evaluated = self.round

    def _show_round(self, num_rounds: int) -> None:
        """Log how a round went, where a progress bar does not."""
        if not self._is_own:
            return
        metrics = dict(self.result.train_metrics_clientapp[self.round])
        metrics |= self.result.evaluate_metrics_clientapp.get(self.round, {})
        shown = ", ".join(f"{key} {value:.4g}" for key, value in metrics.items())
        log(INFO, "[ROUND %s/%s] %s", self.round, num_rounds, shown)

    @property
    def cohort(self) -> Cohort:
        """The nodes that have joined."""
        if self._cohort is None:
            raise RuntimeError("no node has joined yet: call start, or join")
        return self._cohort

    @property
    def recorder(self) -> MemoryRecorder:
        """Where measurements and checkpoints go."""
        return self.cohort.recorder

    @property
    def task(self) -> str:
        """By which the recorder knows this training."""
        return f"{self.stage}/{self.case}"

    def attach(self, cohort: Cohort, members: Mapping[str, Member], case: str = MAIN) -> None:
        """Train nodes that have joined already, as one case of an experiment."""
        self._cohort, self._members, self.case = cohort, dict(members), case
        self._is_own = False

    def join(self, grid: Grid, timeout: float = 3600) -> None:
        """Let nodes join, unless they have on this grid: who they are, what data they hold.

        Raises
        ------
        TooFewParticipants
            Fewer than ``min_nodes`` came by ``timeout``, or hold the same kind of data.
        """
        if self._has_joined(grid):
            return
        recorder = self._open_record()
        client = ClientConfig(timeout=timeout, patience=self.patience)
        self._cohort = cohort = Cohort.on(grid, client, recorder)
        try:
            self._members = join_own_apps(
                cohort, self.join_request(), self.min_nodes, timeout, self.read_member, self.agree
            )
        except BaseException as error:
            self._cohort = None
            recorder.close("failed", f"{type(error).__name__}: {error}")
            raise
        recorder.run["nodes"] = list(cohort.nodes)

    def _has_joined(self, grid: Grid) -> bool:
        """Tell whether nodes have joined: this grid's, or those of an experiment."""
        return self._cohort is not None and (not self._is_own or self._cohort.is_on(grid))

    def join_request(self) -> dict[str, Any]:
        """Return what nodes are told when they join; the record is open by then."""
        return {}

    def read_member(self, words: Mapping[str, Any]) -> Member:
        """Return what a node says of its data as it joins.

        Raises
        ------
        KeyError, ValueError
            It makes no sense, or does not fit: the node is left out.
        """
        return Member.read(words)

    def agree(self, cohort: Cohort, joined: dict[str, Member]) -> None:
        """Leave out nodes whose data do not fit those of most."""
        agree_on_images(cohort, joined)

    def _open_record(self) -> MemoryRecorder:
        name = self.record.name if self.record else f"{self.system}-{datetime.now():%Y%m%d-%H%M%S}"
        about = RunDescription(self.system, name, self.seed, self.settings_to_record())
        recorder = Recorder(self.record, about) if self.record else MemoryRecorder(about)
        # Nodes must not take what they kept in another run of this name for this one's.
        if "nonce" not in recorder.note:
            recorder.note["nonce"] = secrets.token_hex(4)
            recorder.checkpoint()  # a restart is the same run to them, however early it comes
        recorder.name += "-" + recorder.note["nonce"]
        return recorder

    @contextmanager
    def _recorded(self, grid: Grid, timeout: float) -> Iterator[None]:
        """Join if need be; then see that the record says how the run ended."""
        own = not self._has_joined(grid)
        if own:
            log(INFO, "Starting %s strategy:", type(self).__name__)
            self.summary()
            self.join(grid, timeout)
        elif self.record and self.recorder.run.get("status") in ("done", "failed"):
            own = True
            self._reopen_record()
        try:
            yield
        except BaseException as error:
            if own:
                self.recorder.close("failed", f"{type(error).__name__}: {error}")
            raise
        if own:
            self.recorder.close("done")

    def _reopen_record(self) -> None:
        """Go on with a record that was closed, as serving does after training."""
        recorder = self._open_record()
        recorder.run["nodes"] = list(self.cohort.nodes)
        self.cohort.recorder = self.cohort.grid.observer = recorder

    def read(self, replies: Iterable[Message], kind: str, read: Read[T]) -> dict[str, T]:
        """Return by name, in node order, what replies say; log those that make no sense."""
        found = dict(self.cohort.read(iter(replies), kind, read))
        return {name: found[name] for name in self.cohort.nodes if name in found}

    def log(
        self, stage: str, metric: str, value: float, node: str = "organiser", **tags: Any
    ) -> None:
        """Append one measurement of the rounds so far."""
        tags = {"round": self.round, "case": self.case, **tags}
        self.recorder.log(stage, metric, value, node=node, **tags)

    def save_checkpoint(self) -> None:
        """Write down from where a run that is killed goes on."""
        tensors = {f"{self.task}/{key}": value for key, value in self.tensors().items()}
        position = {"round": self.round, "done": self.done, "dropouts": self.cohort.dropouts}
        position |= {"evaluated": self._evaluated, "results": self.result.note()}
        self.recorder.forget(self.task)
        self.recorder.save_checkpoint(self.task, tensors, **position, **self.note())

    def _resume(self) -> bool:
        """Go back to the last checkpoint, if there is one."""
        position = self.recorder.position(self.task)
        if not position:
            return False
        self.round, self.done = int(position["round"]), int(position["done"])
        self._evaluated = int(position.get("evaluated", self.round))  # older records lack it
        self.cohort.dropouts.clear()
        self.cohort.dropouts.update(position["dropouts"])
        self.result.restore(position["results"])
        self.load_state(select_prefix(f"{self.task}/", self.recorder.arrays), position)
        return True

    def summary(self) -> None:
        """Log the settings."""
        for key, value in self.settings_to_record().items():
            log(INFO, "\t├──> %s: %s", key, value)
