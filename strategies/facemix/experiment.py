"""An experiment with inference between edges and a cloud."""

from __future__ import annotations

import math
from typing import Literal, Self

from pydantic import model_validator

from pudica import models
from pudica.clients.data import Splits
from pudica.clients.protocol import batch_sizes
from pudica.clients.shields.decoys import count_missing
from pudica.clients.shields.mixing import padded_count
from pudica.clients.shields.stages import StagedModel, build_staged
from pudica.models.errors import RequestError
from pudica.models.randomness import derive
from pudica.strategies.core.experiment import Experiment
from pudica.strategies.facemix.config import WIRE_BYTES, FacemixConfig

LARGEST_MESSAGE = 2**30
"""What a deployed server takes unless it is told otherwise."""


class FacemixExperiment(Experiment):
    """FaceMix: the edges, the model in three stages, and how it is trained and served.

    Attributes
    ----------
    data : DataConfig
        Which images there are, how they are read, and how they are divided; see docs/data.md. At
        least one of ``attributes`` is needed here.
    """

    system: Literal["facemix"] = "facemix"
    facemix: FacemixConfig = FacemixConfig()

    @model_validator(mode="after")
    def _data_have_attributes(self) -> Self:
        if not self.data.attributes:
            raise ValueError(
                "data.attributes: there are none; name columns that say yes or no, COLUMN=VALUE or "
                "COLUMN:LOW-HIGH, for example [gender=female, age:0-19]"
            )
        split = [case for case in self.facemix.each_case().values() if case.train == "split"]
        if split and self.data.uses_training_statistics:
            raise ValueError(
                "data.normalize: in split training nobody knows the statistics of all training "
                "images; allowed: none, dataset"
            )
        return self

    def deployed(self, nodes: list[str]) -> list[str]:
        """Return settings for real edges: large requests, which are harder to take apart too."""
        return [f"facemix.edges={len(nodes)}", "facemix.request=512", "facemix.keys=secret"]

    def names(self) -> list[str]:
        """Return the edges' names, in the order of their partitions."""
        return [f"edge-{number}" for number in range(self.facemix.edges)]

    def check_models(self, data: Splits) -> None:
        """Build each case's model in its stages; see :class:`Experiment`."""
        if self.facemix.edges > len(data.test):
            raise RequestError(
                f"facemix.edges: {self.facemix.edges}, but there are {len(data.test)} test images"
            )
        for case, settings in self.facemix.each_case().items():
            where = f" (case '{case}')" if self.facemix.cases else ""
            try:
                built = self.built(settings, data)
                if models.is_frozen(built.main):
                    raise RequestError("an exported program can't be trained, nor cut")
                check_messages(settings, built)
                check_groups(settings, data)
            except RequestError as error:
                raise RequestError(f"facemix{where}: {error}") from error

    def built(self, settings: FacemixConfig, data: Splits) -> StagedModel:
        """Return the model of a case as training begins; all cases of a run begin the same.

        Raises
        ------
        RequestError
            As :func:`~pudica.clients.shields.stages.build_staged`.
        """
        return build_staged(
            settings.model,
            len(data.attributes),
            data.shape,
            settings.stages,
            settings.around,
            padded_count(max(settings.training.batch_size, settings.request), settings.around),
            derive(self.seed, "weights"),
        )


def check_messages(settings: FacemixConfig, built: StagedModel) -> None:
    """See that messages are not larger than nodes and servers take.

    Raises
    ------
    RequestError
        They are.
    """
    if settings.place == "edge":
        return
    each = math.prod(built.shield.shape) * WIRE_BYTES[settings.wire]
    for name, images in {
        "request": settings.request,
        "training.batch_size": settings.training.batch_size if settings.train == "split" else 0,
    }.items():
        if padded_count(images, settings.around) * each > LARGEST_MESSAGE:
            raise RequestError(
                f"{name}: {images} images make a message of {images * each / 2**30:.1f} GiB; "
                f"allowed: at most {LARGEST_MESSAGE // each}, or wire: float16, or a later cut"
            )


def check_groups(settings: FacemixConfig, data: Splits) -> None:
    """See that the owner's batches are whole groups, where nothing is to fill them.

    Raises
    ------
    RequestError
        They are not.
    """
    if settings.train == "split":
        return
    size = settings.training.batch_size
    sizes = {*batch_sizes(len(data.train), size), len(data.validation) % size}
    for count in sorted(sizes):
        try:
            count_missing(count, settings.around)
        except ValueError as error:
            raise RequestError(f"a batch of the owner's images: {error}") from error
