"""An experiment with a model that is cut between devices and cloud."""

from __future__ import annotations

from typing import Literal

from pudica import models
from pudica.clients import shields
from pudica.clients.assignments import is_guaranteed
from pudica.clients.data import DataConfig, PartitionConfig, Splits, load
from pudica.clients.shields.front import activation_shape
from pudica.models.cut import Cutter
from pudica.models.errors import RequestError
from pudica.models.randomness import derive
from pudica.strategies.core.experiment import Experiment
from pudica.strategies.split.config import SplitConfig
from pudica.strategies.split.model import build_model, calibrate_shield, single_layer


class SplitExperiment(Experiment):
    """Split learning: the devices, the model and its cut, and how it is trained."""

    system: Literal["split"] = "split"
    split: SplitConfig = SplitConfig()

    def deployed(self, nodes: list[str]) -> list[str]:
        """Return settings for real devices: an epoch's batches in one message."""
        return [
            f"split.devices={len(nodes)}",
            "split.batches_per_message=100000",
            "split.noise=secret",
        ]

    def names(self) -> list[str]:
        """Return the devices' names, in the order of their partitions."""
        return [f"device-{number}" for number in range(self.split.devices)]

    def partition(self) -> PartitionConfig | None:
        """Return how training data are divided; evenly, if nothing else is said."""
        return self.data.partition or PartitionConfig()

    def load_public(self) -> Splits:
        """Return the public data that the cloud trains on beforehand.

        Raises
        ------
        RequestError
            They are not there, or their images have another shape than the devices'.
        """
        pretraining = self.split.pretraining
        if pretraining is None:
            raise RequestError("split.pretraining: there is no such section")
        return _public(pretraining.data, derive(self.seed, "public data"))

    def check_models(self, data: Splits) -> None:
        """Build and cut the model of each case, with its shield; see :class:`Experiment`."""
        if self.split.pretraining:
            self._check_public(data)
        for case, settings in self.split.each_case().items():
            try:
                self._check_case(settings, data)
            except RequestError as error:
                where = f" (case '{case}')" if self.split.cases else ""
                raise RequestError(f"split{where}: {error}") from error

    def _check_case(self, settings: SplitConfig, data: Splits) -> None:
        promised = is_guaranteed(settings.shield, settings.front, settings.noise)
        if (settings.budget or promised) and self.data.uses_training_statistics:
            what = "budget" if settings.budget else "noise: secret"
            raise RequestError(
                f"{what}: nothing finite holds for images that are normalised by statistics of all "
                "training images; allowed: data.normalize: none"
            )
        model = build_model(settings, data.num_classes, data.shape, self.seed)
        layers, back = Cutter(model).cut(settings.cut)
        has_weights = any(True for _ in layers.parameters())
        if shields.find_shield(settings.shield.name).has_penalty() and not has_weights:
            raise RequestError(
                f"shield: '{settings.shield.name}' adds to the loss of the front, and behind "
                f"'{settings.cut}' it has no weights; choose a later cut"
            )
        shape = activation_shape(layers, data.shape)
        if settings.fit == "means":
            single_layer(back, shape)
        shields.build(calibrate_shield(settings), shape, settings.batch_size)
        if models.is_frozen(model):
            raise RequestError("an exported program can't be trained, nor cut")

    def _check_public(self, data: Splits) -> None:
        public = self.load_public()
        if not len(public.validation):
            raise RequestError(
                "split.pretraining.data.split: leaves no validation images, by which the best "
                "epoch is chosen; allowed: own, 4:1:1"
            )
        if public.content_hash == data.content_hash:
            raise RequestError(
                f"split.pretraining.data: '{public.name}' is what the devices hold, and not public"
            )
        if public.key != data.key:
            raise RequestError(
                f"split.pretraining.data: disguised with the key {public.key or '(none)'}, the "
                f"devices' images with {data.key or '(none)'}; give both the same shield and a key"
            )
        if public.shape != data.shape:
            raise RequestError(
                f"split.pretraining.data: images of {_sizes(public.shape)}, the devices' are "
                f"{_sizes(data.shape)}; set image_size and channels to the same"
            )


def _public(config: DataConfig, seed: int) -> Splits:
    try:
        return load(config, seed)
    except RequestError as error:
        raise RequestError(f"split.pretraining.data: {error}") from error


def _sizes(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
