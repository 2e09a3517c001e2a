"""What the cloud of FaceMix gets of images: the rows that stand for them in requests."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch

from pudica.analysis.facemix import case_settings
from pudica.analysis.runs import Run
from pudica.analysis.views.models import NoModel
from pudica.analysis.views.releases import Release, ReleasesView, Target
from pudica.analysis.views.shielded import expected
from pudica.clients.data import DataConfig, ImageSet, Splits, load
from pudica.clients.data.images import Positions
from pudica.clients.shields.mixing import MixingKey, group_size, padded_count
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


def targets(run: Run) -> dict[str, Callable[..., tuple[FacemixView, Target, NoModel]]]:
    """Return what opens each case; see :class:`pudica.clients.runtime.systems.System`."""
    cases = [case for case, settings in case_settings(run).items() if settings.place != "edge"]
    return dict.fromkeys(cases, _open)


def _open(
    run: Run, case: str, images: int, seed: int, *_: object
) -> tuple[FacemixView, Target, NoModel]:
    view = FacemixView.of(run, case)
    own = case_settings(run)[case].train == "central"
    reason = "the cloud trained on images of its own" if own else "edges keep stages of the model"
    return view, release_rows(view, images, seed), NoModel(reason)


class Observation(NamedTuple):
    """What the cloud sees of a few images at once.

    Attributes
    ----------
    rows : Tensor of shape (n, *shape)
        On the attacker's device.
    images : int64 ndarray of shape (n,)
        Which image each row stands for; for mixtures, the image at that position.
    groups : int64 ndarray of shape (n, S)
        Which images each row contains.
    """

    rows: torch.Tensor
    images: np.ndarray
    groups: np.ndarray


@dataclass(frozen=True)
class FacemixView:
    """A case as the cloud sees it: the target of an attack.

    Attributes
    ----------
    compute : Compute
        Where the attacker computes: like the run's clients.
    model : StagedModel
        The trained model on that device; the cloud knows its weights.
    data : Splits
        Normalised like the model's owner does.
    request : int
        Number of images that cross together.
    known : ImageSet
        The cloud's own images to learn from: its training part, or the validation part if
        edges hold the training part.
    post : str
        The layer after which the model answers.
    shielded : bool
        Whether the shield or the anonymiser is applied.
    people : Splits or None
        Images of known people, labelled with the person, to recognise them by.
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
    people: Splits | None = None

    @classmethod
    def of(cls, run: Run, case: str) -> FacemixView:
        """Return the view of a finished case.

        Raises
        ------
        RequestError
            If there is no such case, it is not finished, nothing leaves the edge, or there are no
            images to learn from.
        """
        cases = case_settings(run)
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
        # As the model's file has it.
        mean, std = (torch.tensor(note[name]).reshape(-1, 1, 1) for name in ("mean", "std"))
        parts = {part: getattr(data, part) for part in ("train", "validation", "test")}
        parts = {name: replace(part, mean=mean, std=std) for name, part in parts.items()}
        own = replace(data, **parts)
        known = own.train if settings.train == "central" else own.validation
        if not len(known):
            raise RequestError(
                f"{run.name}: case '{case}': an attacker learns from validation images where edges "
                "train together, and there are none; set data.split"
            )
        return cls(run, case, compute, model, own, settings.request, known, settings.post)

    @property
    def group(self) -> int:
        """Number of images that are mixed with each other."""
        return group_size(self.model.shield.config) if self.shielded else 1

    def without_shield(self) -> FacemixView:
        """Return the same view without the shield."""
        return replace(self, shielded=False)

    def observations(
        self, images: ImageSet, seed: int, *purpose: str | int
    ) -> Iterator[Observation]:
        """Yield what the cloud sees of images in random order, one request at a time.

        Incomplete groups are dropped. ``purpose`` distinguishes uses of the seed.
        """
        randomness = numpy_generator(seed, "attack", *purpose)
        order = randomness.permutation(len(images))
        size = max(self.group, self.request // self.group * self.group)
        for start in range(0, len(order) // self.group * self.group, size):
            chosen = order[start : start + size]
            chosen = chosen[: len(chosen) // self.group * self.group]
            if len(chosen):
                yield self._observe(images, chosen, randomness)

    @torch.no_grad()
    def _observe(self, images: ImageSet, chosen: np.ndarray, randomness: Randomness) -> Observation:
        """Return what the cloud sees of some images that cross together."""
        if not self.shielded:
            plain = isinstance(self.model.pre, Anonymiser)
            clear = self.load_images(images, chosen) if plain else self.features(images, chosen)
            return Observation(clear, chosen, chosen[:, None])
        rows, secret = self.model.shield.protect(self.features(images, chosen), randomness)
        groups = np.repeat(chosen.reshape(-1, self.group), self.group, axis=0)
        if isinstance(secret, MixingKey):
            order = secret.order.cpu().numpy()
            return Observation(rows, chosen[order], groups[order])
        return Observation(rows, chosen, groups)

    @torch.no_grad()
    def features(self, images: ImageSet, chosen: Positions) -> torch.Tensor:
        """Return the output of the first stage, (n, *shape)."""
        features: torch.Tensor = self.model.pre(self.load_images(images, chosen))
        return features

    def load_images(self, images: ImageSet, chosen: Positions) -> torch.Tensor:
        """Return normalised images, (n, C, H, W), on the adversary's device."""
        return self.compute.move_batch(images.batch(chosen)[0])

    @torch.no_grad()
    def logits(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the model's logits for rows as if they had crossed in the clear, (n, 2·A)."""
        logits: torch.Tensor = self.model.post(self.model.main(self.compute.move_batch(rows)))
        return logits

    @torch.no_grad()
    def predict_attributes(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the model's attribute logits (n, 2·A) for images (n, C, H, W) in [0, 1]."""
        images = self.compute.move_batch(self.data.test.normalise(pixels.clone()))
        plain = isinstance(self.model.pre, Anonymiser)
        return self.logits(images if plain else self.model.pre(images))

    def score_attributes(
        self, predictions: Iterable[tuple[torch.Tensor, np.ndarray]]
    ) -> dict[str, float]:
        """Return the balanced accuracy per attribute on the test part, 0 to 1.

        Attributes that all images have, or none, are left out. ``predictions`` are logits (n, 2·A)
        and the images (n,) that they are for.
        """
        truth = torch.from_numpy(self.data.test.attributes)
        counts = torch.zeros(truth.shape[1], 2, 2, dtype=torch.int64)
        for logits, images in predictions:
            counts += count_confusions(predict_answers(logits.cpu()), truth[images])
        each = zip(self.data.attributes, compute_balanced_accuracies(counts).tolist(), strict=True)
        return {name: rate for name, rate in each if not math.isnan(rate)}

    def copy_trunk(self) -> torch.nn.Module:
        """Return a copy of the cloud's layers up to those that answer."""
        main = copy.deepcopy(self.model.main)
        if not isinstance(self.model.post, torch.nn.Identity):
            return main
        front, _ = Cutter(main).cut(self.post)
        return front


def split_evenly(rows: np.ndarray, size: int) -> list[np.ndarray]:
    """Split rows into parts of nearly equal length, at most ``size``."""
    return np.array_split(rows, -(-len(rows) // size))


def mean(rates: Mapping[str, float]) -> float:
    """Return the mean of rates; NaN if there are none."""
    return sum(rates.values()) / len(rates) if rates else math.nan


def explain_few(view: FacemixView, images: int, what: str = "test images") -> str:
    """Return that there are fewer images than a group has, or ""."""
    return f"{images} {what} are fewer than a group of {view.group}" if images < view.group else ""


def explain_no_maps(view: FacemixView) -> str:
    """Return that no feature maps are sent, or ""."""
    shape = tuple(view.model.shield.shape)
    if len(shape) < 3 or min(shape[1:]) < 2:
        return f"values of shape {shape} are sent, not feature maps of at least 2x2"
    return ""


@dataclass(frozen=True)
class RowsView(ReleasesView):
    """The rows that stand for test images, each once.

    A row of mixtures is that at the image's place among the group's; which one that is depends on
    the key, and so does the row.

    Attributes
    ----------
    cloud : FacemixView
        What is public.
    """

    cloud: FacemixView

    @property
    def is_keyed(self) -> bool:
        """Whether rows are mixtures."""
        return self.noisy and self.cloud.group > 1

    def compute(
        self,
        images: ImageSet,
        positions: Positions,
        seed: int,  # noqa: ARG002
        node: int | None = None,  # noqa: ARG002
    ) -> torch.Tensor:
        """Return features before the shield; see :meth:`ReleasesView.compute`."""
        cloud, chosen = self.cloud, np.arange(len(images))[positions]
        parts = split_evenly(chosen, cloud.request) if len(chosen) else []
        plain = not self.noisy and isinstance(cloud.model.pre, Anonymiser)
        make = cloud.load_images if plain else cloud.features
        return torch.cat([make(images, part).cpu() for part in parts])[:, None]

    @torch.no_grad()
    def protect(self, values: torch.Tensor, randomness: Randomness) -> torch.Tensor:
        """Return rows as they would cross; see :meth:`ReleasesView.protect`.

        A group that is not full is filled with others of these rows.
        """
        if not self.noisy:
            return values
        fill = torch.arange(padded_count(len(values), self.cloud.model.shield.config)) % len(values)
        rows, secret = self.cloud.model.shield.protect(
            self.device.move_batch(values[fill, 0]), randomness
        )
        if isinstance(secret, MixingKey):
            rows = rows[secret.order.argsort()]
        return rows[: len(values)].cpu()[:, None]

    def function_of(self, node: int) -> Release:
        """Return the features of images; see :meth:`ReleasesView.function_of`."""
        if self.is_keyed:
            return super().function_of(node)
        mean, std = (self.device.move_batch(each) for each in (self.own.mean, self.own.std))
        pre, shield = self.cloud.model.pre, self.cloud.model.shield
        plain = not self.noisy and isinstance(pre, Anonymiser)

        def release(images: torch.Tensor) -> torch.Tensor:
            x = (images - mean) / std
            features = x if plain else pre(x)
            return (expected(shield, features) if self.noisy else features)[:, None]

        return release


def release_rows(cloud: FacemixView, images: int, seed: int) -> Target:
    """Return the rows of at most ``images`` test images, in whole groups if there is one."""
    randomness, test = numpy_generator(seed, "attack", "rows"), cloud.data.test
    chosen = randomness.permutation(len(test))[:images]
    chosen = chosen[: max(len(chosen) // cloud.group, 1) * cloud.group]
    view = RowsView(
        name=f"{cloud.run.name}: case '{cloud.case}'",
        seen=torch.zeros(len(chosen), 1, *cloud.model.shield.shape),
        nodes=np.zeros(len(chosen), np.int64),
        own=cloud.known,
        device=cloud.compute,
        cloud=cloud,
    )
    values = view.compute(test, chosen, seed)
    return Target(replace(view, seen=view.protect(values, randomness)), test.subset(chosen))
