"""An experiment with disguised images."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import Literal, Self

from pydantic import model_validator

from pudica import models
from pudica.clients.data import Splits, partition_once
from pudica.clients.dlmt.private_training import validate_private_model
from pudica.clients.shields.disguises import Key
from pudica.models.errors import RequestError
from pudica.models.randomness import derive
from pudica.strategies.core.experiment import Experiment
from pudica.strategies.dlmt.config import OWN_KEYS, SHARED_KEY, DlmtConfig


class DlmtExperiment(Experiment):
    """DLMT: the owners, how they disguise their images, and how a network learns from them.

    Attributes
    ----------
    data : DataConfig
        Which images there are, and how they are read; see docs/data.md. Their shield, key and
        partition are settings of ``dlmt`` here.
    """

    system: Literal["dlmt"] = "dlmt"
    dlmt: DlmtConfig = DlmtConfig()

    @model_validator(mode="after")
    def _cases_say_it(self) -> Self:
        for key in ("shield", "key", "partition"):
            if getattr(self.data, key) is not None:
                raise ValueError(
                    f"data.{key}: in this system set dlmt.{key}, which cases may change"
                )
        for key in sorted(self.dlmt.without_effect()):
            needed = "a shield" if key == "key" else "train: federated"
            raise ValueError(f"dlmt.{key}: nothing comes of it without {needed}; leave it out")
        if self.dlmt.examiner is not None and not self.dlmt.cases:
            raise ValueError(
                f"dlmt.examiner: '{self.dlmt.examiner}' is to be a case, and there are no cases"
            )
        if self.data.normalize not in (None, "training"):
            raise ValueError(
                f"data.normalize: '{self.data.normalize}' is not for this system, which normalises "
                "by the disguised training images; leave it out"
            )
        return self

    def deployed(self, nodes: list[str]) -> list[str]:
        """Return settings for real owners."""
        secret = ["dlmt.dp.noise=secret"] if self.dlmt.dp else []
        return [f"dlmt.owners={len(nodes)}", "dlmt.measures=false", *secret]

    def names(self) -> list[str]:
        """Return the owners' names, in the order of their partitions."""
        return [f"owner-{number}" for number in range(self.dlmt.owners)]

    def check_models(self, data: Splits) -> None:
        """Build the model of each case, and see whether its disguise fits."""
        for case, settings in self.dlmt.each_case().items():
            where = f" (case '{case}')" if self.dlmt.cases else ""
            try:
                _check_disguise(settings, data)
                model = models.build_for(settings.model, data.shape, num_classes=data.num_classes)
                if models.is_frozen(model):
                    raise RequestError("an exported program can't be trained")
                if settings.dp is not None:
                    validate_private_model(model)
                seed = derive(self.seed, "data")
                partition_once(data.train.labels, self.dlmt.owners, settings.partition, seed)
            except RequestError as error:
                raise RequestError(f"dlmt{where}: {error}") from error


def _check_spelling(key: str) -> None:
    """Refuse what was probably to be one of the words, and is no file."""
    name = Path(key).name
    near = get_close_matches(name.lower(), (SHARED_KEY, OWN_KEYS), n=1)
    if near and not Path(key).expanduser().exists():
        raise RequestError(
            f"key: '{name}' is no file; allowed: {SHARED_KEY}, {OWN_KEYS}, or a key file"
        )


def _check_disguise(settings: DlmtConfig, data: Splits) -> None:
    if settings.shield is None:
        return
    if data.key:
        raise RequestError(
            f"shield: these images are disguised already, with the key {data.key}; leave it out"
        )
    if settings.key_file:
        _check_spelling(settings.key)
        Key.load_for(settings.key_file, settings.shield, data.shape)
    else:
        Key.from_seed(settings.shield, data.shape, seed=0)
