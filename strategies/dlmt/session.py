"""One case of DLMT as the cloud sees it: the owners, the settings, the messages."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from flwr.app import RecordDict

from pudica.clients import protocol
from pudica.clients.assignments import OwnerAssignment
from pudica.models.randomness import derive
from pudica.strategies.core.cohort import Cohort
from pudica.strategies.core.session import CaseSession
from pudica.strategies.dlmt.config import DlmtConfig
from pudica.strategies.dlmt.experiment import DlmtExperiment

Model = dict[str, np.ndarray]
"""A model as it travels, with what images are normalised by."""


class Session(CaseSession[DlmtExperiment, DlmtConfig]):
    """The owners of one case.

    Attributes
    ----------
    normalisation : ndarray of shape (2, C)
        Mean and deviation of each channel of all owners' disguised training images.
    """

    def __init__(
        self, cohort: Cohort, experiment: DlmtExperiment, case: str, settings: DlmtConfig
    ) -> None:
        super().__init__(cohort, experiment, case, settings, settings.min_owners)
        self.normalisation = np.zeros((2, 0), np.float32)

    # ------------------------------------------------------------------------ joining

    def join(self, turn: int) -> None:
        """Give every owner its part, and ask what images it has.

        Parameters
        ----------
        turn : int
            The last round of a resumed run, -1 if it begins.
        """
        self.introduce(self._assignments(), dict.fromkeys(self.experiment.names(), turn))

    def key_name(self, node: str) -> str:
        """Return the name that a node's key is noted under: each case may have its own."""
        return f"{node}/{self.case}"

    def normalise(self) -> None:
        """Learn from all owners together how images are normalised; once for all in a case.

        Raises
        ------
        TooFewParticipants
            Too few owners say so, or have as many training images as the run was begun with.
        """
        task, kept = self.task("joined"), self.recorder.arrays
        counts = {name: member.train for name, member in self.members.items()}
        if self.recorder.is_finished(task):
            self._leave_out_others(self.recorder.result(task)["counts"], counts)
            self.require_min_replies(len(self.members))
            self.normalisation = kept[f"{task}/normalisation"].numpy()
            return
        self.normalisation = self._pooled()
        kept[f"{task}/normalisation"] = torch.from_numpy(self.normalisation)
        self.recorder.finish(task, counts={name: counts[name] for name in self.members})

    def _leave_out_others(self, before: Mapping[str, int], now: Mapping[str, int]) -> None:
        """Leave out who has another number of training images than it began with."""
        for name, count in now.items():
            if before.get(name, count) != count:
                self.cohort.reject(
                    name,
                    f"has {count} training images, and this run was begun with {before[name]}; "
                    "give it the images that it had",
                )
                del self.members[name], self.cohort.nodes[name]

    @property
    def begun_with(self) -> dict[str, int]:
        """How many training images each owner had that was there as the case was begun."""
        counts: dict[str, int] = self.recorder.result(self.task("joined"))["counts"]
        return counts

    def _assignments(self) -> dict[str, OwnerAssignment]:
        settings = self.settings
        # Each owner's images are normalised by what all owners together say.
        changes = {"normalize": "none", "partition": settings.partition}
        examiner = self._examiner()
        return {
            name: OwnerAssignment(
                **{**own, "data": own["data"].model_copy(update=changes)},
                case=self.case,
                shield=settings.shield,
                key=settings.key,
                train=settings.train,
                model=settings.model,
                training=settings.training,
                local_epochs=settings.local_epochs,
                keep_momentum=settings.keep_momentum,
                measures=settings.measures,
                examiner=examiner,
                dp=settings.dp,
                seed=self.seed_of(own["partition"]),
            )
            for name, own in self.base_assignments().items()
        }

    def _examiner(self) -> str | None:
        """Return the name of the model that examines disguised images, if there is one."""
        examining = self.experiment.dlmt.examining()
        return self.experiment.dlmt.each_case()[examining].model if examining else None

    def seed_of(self, owner: int) -> int:
        """Return the seed of an owner's batches; the cloud trains by that of the first."""
        return derive(self.seed, "owner", owner)

    def _pooled(self) -> np.ndarray:
        """Return mean and deviation over all owners' images, from those of each."""
        request = dict.fromkeys(self.cohort.nodes, self.request({}))
        replies = self.cohort.send_and_receive(protocol.STATISTICS, request, self._read_statistics)
        self.cohort.nodes = {name: self.cohort.nodes[name] for name in replies}
        self.members = {name: self.members[name] for name in replies}
        self.require_min_replies(len(replies))
        weights = np.array([float(self.members[name].train) for name in replies])
        means, deviations = np.stack([*replies.values()]).astype(np.float64).swapaxes(0, 1)
        shares = (weights / weights.sum())[:, None]
        mean = (shares * means).sum(0)
        deviation = np.sqrt((shares * (deviations**2 + (means - mean) ** 2)).sum(0))
        # A channel that never changes must be divided by something.
        return np.stack([mean, np.where(deviation > 0, deviation, 1)]).astype(np.float32)

    def _read_statistics(self, _: str, content: RecordDict) -> np.ndarray:
        values = protocol.array_of(content, "normalisation", (2, self.image[0]))
        # Of values that are scaled to [0, 1].
        if not ((values >= 0) & (values <= 1)).all():
            raise ValueError("mean or deviation outside 0 to 1")
        return values

    # ----------------------------------------------------------------------- messages

    def note_dropouts(self, stage: str, round_: int = 0) -> None:
        """Log who dropped out of the exchanges since the last time."""
        for name, count in self.cohort.dropouts.items():
            self.log(stage, "dropouts", count, node=name, round=round_)
        self.cohort.dropouts.clear()
