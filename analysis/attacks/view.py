"""What the cloud sees of images in one case of a run."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch

from pudica.analysis.facemix import settings_of
from pudica.analysis.runs import Run
from pudica.clients.data import DataConfig, ImageSet, Splits, load
from pudica.clients.data.images import Positions
from pudica.clients.shields.mixing import MixingKey, group_size
from pudica.clients.shields.stages import StagedModel, build_staged
from pudica.models.anonymiser import Anonymiser
from pudica.models.attributes import compute_balanced_accuracies, count_confusions, predict_answers
from pudica.models.compute import Compute
from pudica.models.cut import Cutter
from pudica.models.errors import RequestError
from pudica.models.files import load_tensors
from pudica.models.randomness import Randomness, derive, numpy_generator
from pudica.strategies.core.experiment import ClientConfig
from pudica.strategies.facemix.system import MODEL


class Observation(NamedTuple):
    """What the cloud sees of a few images at once.

    Attributes
    ----------
    rows : Tensor of shape (n, *shape)
        Of all of them together; where the attacker computes.
    images : int64 ndarray of shape (n,)
        Which image stands in each row: of mixtures, the one whose place it has.
    groups : int64 ndarray of shape (n, S)
        Which images are in each row.
    """

    rows: torch.Tensor
    images: np.ndarray
    groups: np.ndarray


@dataclass(frozen=True)
class View:
    """A case as the cloud sees it, to be attacked.

    Attributes
    ----------
    run : Run
    case : str
    compute : Compute
        Where the attacker computes: as the run's clients did.
    model : Staged
        Trained, and there; its weights are known to the cloud.
    data : Splits
        Of the run, normalised as the model's owner does.
    request : int
        Images that cross together.
    known : ImageSet
        The cloud's own images, to learn from: what it trained on, or, where edges hold that, the
        validation part.
    post : str
        The layer behind which answers are made.
    shielded : bool
        Whether the shield, or the anonymiser, stands between.
    """

    run: Run
    case: str
    compute: Compute
    model: StagedModel
    data: Splits
    request: int
    known: ImageSet
    post: str
    shielded: bool = True

    @classmethod
    def of(cls, run: Run, case: str) -> View:
        """Return what the cloud sees of a case that is done.

        Raises
        ------
        RequestError
            There is no such case, it is not done, nothing leaves the edge in it, or there are no
            images to learn from.
        """
        cases = settings_of(run)
        if case not in cases:
            raise RequestError(f"{run.name}: no case '{case}'; allowed: {', '.join(cases)}")
        settings = cases[case]
        if settings.place == "edge":
            raise RequestError(f"{run.name}: case '{case}': nothing leaves the edge to be attacked")
        kept = load_tensors(run.directory / case / MODEL)
        if kept is None:
            raise RequestError(f"{run.name}: case '{case}' is not done yet: it has no {MODEL}")
        tensors, note = kept
        data = load(run.section("data", DataConfig), derive(int(run.info["seed"]), "data"))
        model = build_staged(
            settings.model,
            len(data.attributes),
            data.shape,
            settings.stages,
            settings.around,
            batch=10**6,
        )
        model.load_state_dict(tensors)
        compute = Compute(run.section("client", ClientConfig))
        compute.move_model(model.eval())
        own = normalised(data, note)
        known = own.train if settings.train == "central" else own.validation
        if not len(known):
            raise RequestError(
                f"{run.name}: case '{case}': an attacker learns from validation images where edges "
                "train together, and there are none; set data.split"
            )
        return cls(run, case, compute, model, own, settings.request, known, settings.post)

    @property
    def group(self) -> int:
        """How many images are mixed with each other."""
        return group_size(self.model.shield.config) if self.shielded else 1

    def in_the_clear(self) -> View:
        """Return the same without the shield."""
        return replace(self, shielded=False)

    def observations(
        self, images: ImageSet, seed: int, *purpose: str | int
    ) -> Iterator[Observation]:
        """Yield what the cloud sees of images in random order, a request at a time.

        Whole groups only: what does not fill one is left out.

        Parameters
        ----------
        seed : int
            Of order, keys and noise; ``purpose`` tells uses of it apart.
        """
        randomness = numpy_generator(seed, "attack", *purpose)
        order = randomness.permutation(len(images))
        size = max(self.group, self.request // self.group * self.group)
        for start in range(0, len(order) // self.group * self.group, size):
            chosen = order[start : start + size]
            chosen = chosen[: len(chosen) // self.group * self.group]
            if len(chosen):
                yield self.observe(images, chosen, randomness)

    @torch.no_grad()
    def observe(self, images: ImageSet, chosen: np.ndarray, randomness: Randomness) -> Observation:
        """Return what the cloud sees of some images that cross together."""
        if not self.shielded:
            plain = isinstance(self.model.pre, Anonymiser)
            clear = self._placed(images, chosen) if plain else self.features(images, chosen)
            return Observation(clear, chosen, chosen[:, None])
        rows, secret = self.model.shield.protect(self.features(images, chosen), randomness)
        groups = np.repeat(chosen.reshape(-1, self.group), self.group, axis=0)
        if isinstance(secret, MixingKey):
            order = secret.order.cpu().numpy()
            return Observation(rows, chosen[order], groups[order])
        return Observation(rows, chosen, groups)

    @torch.no_grad()
    def features(self, images: ImageSet, chosen: Positions) -> torch.Tensor:
        """Return what the first stage makes of images, (n, *shape)."""
        features: torch.Tensor = self.model.pre(self._placed(images, chosen))
        return features

    def _placed(self, images: ImageSet, chosen: Positions) -> torch.Tensor:
        return self.compute.move_batch(images.batch(chosen)[0])

    @torch.no_grad()
    def logits(self, rows: torch.Tensor) -> torch.Tensor:
        """Return what the model says of rows as if they had crossed in the clear, (n, 2·A)."""
        logits: torch.Tensor = self.model.post(self.model.main(self.compute.move_batch(rows)))
        return logits

    @torch.no_grad()
    def told(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return what the model says of images (n, C, H, W) in [0, 1], (n, 2·A)."""
        images = self.compute.move_batch(self.data.test.normalise(pixels.clone()))
        plain = isinstance(self.model.pre, Anonymiser)
        return self.logits(images if plain else self.model.pre(images))

    def rates(self, told: Iterable[tuple[torch.Tensor, np.ndarray]]) -> dict[str, float]:
        """Return how often each attribute of the test part's images was told, 0 to 1.

        Balanced over yes and no; without those that no image has, or each.

        Parameters
        ----------
        told : iterable of (Tensor of shape (n, 2·A), int64 ndarray of shape (n,))
            Logits, and of which images.
        """
        truth = torch.from_numpy(self.data.test.attributes)
        counts = torch.zeros(truth.shape[1], 2, 2, dtype=torch.int64)
        for logits, images in told:
            counts += count_confusions(predict_answers(logits.cpu()), truth[images])
        each = zip(self.data.attributes, compute_balanced_accuracies(counts).tolist(), strict=True)
        return {name: rate for name, rate in each if not math.isnan(rate)}

    def trunk(self) -> torch.nn.Module:
        """Return a copy of what the cloud has up to the layers that answer."""
        main = copy.deepcopy(self.model.main)
        if not isinstance(self.model.post, torch.nn.Identity):
            return main
        front, _ = Cutter(main).cut(self.post)
        return front

    def classifier(self) -> torch.nn.Sequential:
        """Return a copy of what the cloud has behind the cut, to be trained on."""
        return torch.nn.Sequential(copy.deepcopy(self.model.main), copy.deepcopy(self.model.post))


def in_parts(rows: np.ndarray, size: int) -> list[np.ndarray]:
    """Return rows in parts of nearly the same length, at most ``size``."""
    return np.array_split(rows, -(-len(rows) // size))


def mean(rates: Mapping[str, float]) -> float:
    """Return the mean of rates; NaN of none, where no attribute can be judged."""
    return sum(rates.values()) / len(rates) if rates else math.nan


def normalised(data: Splits, note: dict[str, object]) -> Splits:
    """Return data with images normalised as a model's file says."""
    mean, std = (torch.tensor(note[name]).reshape(-1, 1, 1) for name in ("mean", "std"))
    parts = {
        part: replace(getattr(data, part), mean=mean, std=std)
        for part in ("train", "validation", "test")
    }
    return replace(data, **parts)
