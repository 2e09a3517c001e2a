"""What participants are asked while the noise is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, RecordDict

from pudica.clients import protocol
from pudica.models.randomness import derive
from pudica.strategies.themis.config import ThemisConfig
from pudica.strategies.themis.turns import Turn


def variant_of(settings: ThemisConfig, name: str) -> str:
    """Return which of a participant's models is asked: a cheater's is its cheating one."""
    return "cheating" if name in settings.cheaters else "honest"


def build_request(config: Mapping[str, Any], arrays: ArrayRecord) -> RecordDict:
    """Return the content of a request."""
    return RecordDict({"config": ConfigRecord(dict(config)), "arrays": arrays})


class Requests:
    """The requests of one training.

    Parameters
    ----------
    settings : ThemisConfig
    run : str
        By which nodes know it.
    seed : int
    case : str
    """

    def __init__(self, settings: ThemisConfig, run: str, seed: int, case: str) -> None:
        self.settings = settings
        self.run = run
        self.seed = seed
        self.case = case

    def gradients(
        self, turn: Turn, config: dict[str, Any], arrays: ArrayRecord
    ) -> dict[str, RecordDict]:
        """Return requests for gradients; participants of whom the same is asked share one."""
        shared: dict[tuple[bool, str | None], RecordDict] = {}
        requests = {}
        for name in turn.names:
            kind = (name in self.settings.cheaters, self.settings.hostile.get(name))
            if kind not in shared:
                shared[kind] = build_request({**config, **self._common(turn, name)}, arrays)
            requests[name] = shared[kind]
        return requests

    def visits(
        self,
        turn: Turn,
        config: dict[str, Any],
        arrays: ArrayRecord,
        state: tuple[np.ndarray, int],
        everyone: Sequence[str],
    ) -> dict[str, RecordDict]:
        """Return requests for local steps.

        Parameters
        ----------
        state : (ndarray of shape (6, C, H, W), int)
            As of :meth:`pudica.models.generator.GeneratorTraining.pack`.
        everyone : sequence of str
            By whose places in it participants draw their noise.
        """
        values, steps = state
        own: dict[str, Any] = {
            "steps": steps,
            "learning-rate": self.settings.learning_rate,
            "weight": self.settings.weight,
            protocol.MOMENTS: protocol.pack_moments(values),
        }
        places = {name: 1 + place for place, name in enumerate(everyone)}
        return {
            name: build_request(
                {**config, **self._common(turn, name), **own, "visitor": places[name]}, arrays
            )
            for name in turn.names
        }

    def _common(self, turn: Turn, name: str) -> dict[str, protocol.Scalar]:
        settings = self.settings
        config: dict[str, protocol.Scalar] = {
            "run": self.run,
            "variant": variant_of(settings, name),
            "bound": settings.M,
            "seed": derive(self.seed, "schedule", self.case),
            "epoch": turn.epoch,
            "step": turn.step,
            "count": turn.count,
            "batch": settings.batch_size,
            "noise": settings.noise,
            "visitor": 0,
        }
        if name in settings.hostile:
            config["attack"] = settings.hostile[name]
        return config
