"""One case of DLMT as the cloud sees it: the owners, the settings, the messages."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from flwr.app import RecordDict

from clients import protocol
from clients.assignments import OwnerAssignment
from clients.shields.disguises import Span
from models.compute import Compute
from models.packing import all_finite
from models.randomness import derive
from strategies.dlmt.config import DlmtConfig
from strategies.dlmt.experiment import DlmtExperiment
from strategies.exchange import Exchanges
from strategies.joining import Shape, agreed, introduce, told
from strategies.session import CaseSession, Member

Model = dict[str, np.ndarray]
"""A model as it travels, with what images are normalised by."""


class Session(CaseSession):
    """The owners of one case.

    Parameters
    ----------
    exchanges : Exchanges
    experiment : DlmtExperiment
    case : str
    settings : DlmtConfig
        Of this case.

    Attributes
    ----------
    owners : dict of str to Member
        Who joined.
    image, classes : tuple of int, int
        Shape of an image, number of classes; of all owners.
    span : Span
        Where values of disguised images lie.
    normalisation : ndarray of shape (2, C)
        Mean and deviation of each channel of all owners' disguised training images.
    """

    def __init__(
        self, exchanges: Exchanges, experiment: DlmtExperiment, case: str, settings: DlmtConfig
    ) -> None:
        super().__init__(exchanges, case)
        self.experiment = experiment
        self.settings = settings
        self.seed = derive(experiment.seed, "dlmt", case)
        self.compute = Compute(experiment.client)
        self.owners: dict[str, Member] = {}
        self.image: Shape = (0, 0, 0)
        self.classes = 0
        self.span = Span()
        self.normalisation = np.zeros((2, 0), np.float32)

    # ------------------------------------------------------------------------ joining

    def join(self) -> None:
        """Give every owner its part, and ask what images it has.

        Raises
        ------
        RuntimeError
            Owners with images of different shapes, classes or values; too few of them.
        """
        self.exchanges.forgive()
        joined = introduce(self.exchanges, self._assignments())
        self.need(len(joined))
        self.image, self.classes = agreed(joined)
        spans = {
            name: Span(int(words["low"]), int(words["high"]), words["kind"])  # type: ignore[arg-type]
            for name, words in joined.items()
        }
        if len(set(spans.values())) > 1:
            raise RuntimeError(f"the owners' disguised images have different values: {spans}")
        self.span = next(iter(spans.values()))
        for name, words in joined.items():
            self.recorder.met_key(f"{name}/{self.case}", str(words["key"]))
            self.owners[name] = Member.introduced(words)
        self.normalisation = self._pooled()

    def _assignments(self) -> dict[str, OwnerAssignment]:
        settings, data = self.settings, self.experiment.data
        # Each owner's images are normalised by what all owners together say.
        changes = {"normalize": "none", "partition": settings.partition}
        return {
            name: OwnerAssignment(
                **{**own, "data": data.model_copy(update=changes)},
                case=self.case,
                shield=settings.shield,
                key=settings.key,
                train=settings.train,
                model=settings.model,
                training=settings.training,
                local_epochs=settings.local_epochs,
                keep_momentum=settings.keep_momentum,
                seed=self.seed_of(own["partition"]),
            )
            for name, own in zip(
                self.experiment.names(), told(self.experiment, self.run), strict=True
            )
        }

    def seed_of(self, owner: int) -> int:
        """Return the seed of an owner's batches; the cloud trains by that of the first."""
        return derive(self.seed, "owner", owner)

    def _pooled(self) -> np.ndarray:
        """Return mean and deviation over all owners' images, from those of each."""
        request = dict.fromkeys(self.exchanges.nodes, self.request({}))
        replies = self.exchanges.ask(protocol.STATISTICS, request, self._read_statistics)
        self.exchanges.nodes = {name: self.exchanges.nodes[name] for name in replies}
        self.owners = {name: self.owners[name] for name in replies}
        self.need(len(replies))
        weights = np.array([float(self.owners[name].train) for name in replies])
        means, deviations = np.stack([*replies.values()]).astype(np.float64).swapaxes(0, 1)
        shares = (weights / weights.sum())[:, None]
        mean = (shares * means).sum(0)
        variance = (shares * (deviations**2 + (means - mean) ** 2)).sum(0)
        return np.stack([mean, np.sqrt(variance)]).astype(np.float32)

    def _read_statistics(self, content: RecordDict) -> np.ndarray:
        values = protocol.arrays_of(content)["normalisation"]
        if values.shape != (2, self.image[0]) or not np.isfinite(values).all():
            raise ValueError(f"statistics of shape {values.shape}, or not finite")
        if not (values[1] > 0).all():
            raise ValueError("a deviation that is not above 0")
        return values

    # ----------------------------------------------------------------------- messages

    def admitted(self, arrays: Mapping[str, np.ndarray], like: Model) -> Model:
        """Return the model that an owner sends.

        Raises
        ------
        KeyError, ValueError
            Something is missing, of another shape or type, or not finite.
        """
        found = {}
        for name in ("weights", "buffers"):
            values = arrays[name]
            if values.shape != like[name].shape or values.dtype != np.float32:
                raise ValueError(
                    f"{name} of shape {values.shape} and type {values.dtype}, "
                    f"{like[name].shape} of float32 were asked for"
                )
            if not all_finite(torch.from_numpy(values)):
                raise ValueError(f"{name} with NaN or infinity")
            found[name] = values
        return found

    def need(self, answered: int) -> None:
        """Raise TooFewParticipants if fewer owners answered than the experiment needs."""
        self.exchanges.need(self.settings.min_owners, answered, f"dlmt ({self.case})")
