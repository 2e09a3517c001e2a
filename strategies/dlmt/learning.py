"""What training at the cloud and at the owners have in common: rounds, measurements, stops."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from flwr.app import Array, ArrayRecord, MetricRecord
from torch import nn

from pudica import models
from pudica.models.packing import load_model_arrays, model_arrays, select_prefix
from pudica.models.randomness import derive
from pudica.strategies.core.recorder import MemoryRecorder
from pudica.strategies.core.result import RecordedResult
from pudica.strategies.core.strategy import RecordedStrategy
from pudica.strategies.dlmt.measures import DISGUISED, count_right
from pudica.strategies.dlmt.session import Model, Session

TRAINING = RecordedStrategy.stage


class Learning(RecordedStrategy):
    """The training of one case; each round leads to another model.

    Parameters
    ----------
    session : Session
    """

    system = "dlmt"
    saves_every_round = False

    def __init__(self, session: Session) -> None:
        super().__init__(min_nodes=session.minimum, seed=session.seed)
        self.session = session
        self.settings = session.settings
        self.loss = float("nan")
        self.model: nn.Module = models.build_for(
            self.settings.model,
            session.image,
            num_classes=session.classes,
            seed=derive(session.experiment.seed, "weights"),
        )
        self.attach(session.cohort, session.members, session.case)
        self._dropouts_before = dict(self.cohort.dropouts)

    def train(self) -> None:
        """Train to the end, from wherever a run that was stopped had got to."""
        self.start(self.cohort.grid, num_rounds=self.settings.rounds, timeout=float("inf"))
        arrays = {f"{self.task}/{key}": value for key, value in self._model_tensors().items()}
        self.recorder.arrays |= arrays
        self.recorder.finish(self.task)

    def recall(self) -> None:
        """Load the model of a training that is finished."""
        self._load_model(select_prefix(f"{self.task}/", self.recorder.arrays))

    def trained(self) -> Model:
        """Return the model as it travels, with what images are normalised by."""
        return {**model_arrays(self.model), "normalisation": self.session.normalisation}

    def settings_to_record(self) -> dict[str, Any]:
        """Return the settings of the case."""
        return self.settings.model_dump(mode="json", by_alias=True)

    def initial_arrays(self) -> ArrayRecord:
        """Return the untrained model."""
        return self.arrays()

    def arrays(self) -> ArrayRecord:
        """Return the model as it travels."""
        return ArrayRecord({name: Array(values) for name, values in self.trained().items()})

    def load_arrays(self, arrays: ArrayRecord) -> None:
        """Load weights and buffers into the model."""
        tensors = {name: torch.from_numpy(array.numpy()) for name, array in arrays.items()}
        load_model_arrays(self.model, tensors)

    def replace_arrays(self, arrays: ArrayRecord) -> None:
        """Go on with another model."""
        self.load_arrays(arrays)

    def count_exchanges(self) -> int:
        """Return one: so many exchanges make a round."""
        return 1

    def begin_round(self) -> None:
        """Keep count of dropouts: they are logged as a round ends, those before it too."""

    def end_round(self) -> MetricRecord:
        """Log the loss, accuracies on disguised images if they are due, and dropouts."""
        done = self.round + 1
        if not math.isnan(self.loss):  # owners that train by DP-SGD say none
            self.session.log(TRAINING, "loss", self.loss, round=done)
        if self.settings.evaluates(done):
            model = self.trained()
            for part in ("validation", "test"):
                counted = count_right(self.session, model, part, DISGUISED)
                counted.log(self.session, part, "accuracy", done)
        self.session.note_dropouts(TRAINING, done)
        return MetricRecord({} if math.isnan(self.loss) else {"loss": self.loss})

    def is_evaluation_due(self, last: bool) -> bool:  # noqa: ARG002
        """Return False: models are measured as a round ends."""
        return False

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the model, and what else the next round depends on."""
        return self._model_tensors() | self.state()

    def load_state(self, tensors: Mapping[str, torch.Tensor], note: Mapping[str, Any]) -> None:
        """Put back what :meth:`tensors` returned; who dropped out of joining again still counts."""
        self.cohort.dropouts.update(self._dropouts_before)
        self._load_model(tensors)
        self.restore(tensors, note["round"])

    @abstractmethod
    def state(self) -> dict[str, torch.Tensor]:
        """Return what the next round depends on besides the model."""

    @abstractmethod
    def restore(self, tensors: Mapping[str, torch.Tensor], done: int) -> None:
        """Put back what :meth:`state` returned, after so many rounds."""

    def _model_tensors(self) -> dict[str, torch.Tensor]:
        arrays = model_arrays(self.model)
        return {f"model/{name}": torch.from_numpy(values) for name, values in arrays.items()}

    def _load_model(self, tensors: Mapping[str, torch.Tensor]) -> None:
        load_model_arrays(self.model, select_prefix("model/", tensors))


def find_position(recorder: MemoryRecorder, task: str) -> dict[str, Any]:
    """Return where training stood at the last checkpoint, one of an older version too."""
    position = recorder.position(task)
    if position and "round" not in position:
        rounds, results = int(position["done"]), RecordedResult().note()
        position |= {"round": rounds, "done": 0, "dropouts": {}, "results": results}
    return position
