"""What participants of THEMIS get of test images: each again and again, under new noise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from pudica.analysis.runs import Run
from pudica.analysis.views.models import NoModel
from pudica.analysis.views.releases import (
    Note,
    NothingCrossed,
    Release,
    ReleasesView,
    Target,
    choose_slots,
)
from pudica.clients import protocol
from pudica.clients.data import DataConfig, ImageSet, load
from pudica.clients.data.images import Positions
from pudica.models.compute import Compute
from pudica.models.generator import NoiseGenerator
from pudica.models.randomness import Randomness, derive
from pudica.strategies.core.experiment import ClientConfig
from pudica.strategies.core.wire_log import Exchanged
from pudica.strategies.themis.config import ThemisConfig
from pudica.strategies.themis.release import VARIANTS


def targets(run: Run) -> dict[str, Callable[..., tuple[Target | NoModel, ...]]]:
    """Return what opens each case; see :class:`pudica.clients.runtime.systems.System`."""
    return dict.fromkeys(run.section("themis", ThemisConfig).each_case(), observe)


def observe(
    run: Run, case: str, images: int, seed: int, replay: Callable[[Note], None]
) -> tuple[Target | NoModel, ...]:
    """Return the trained noise's releases of at most ``images`` test images; the case runs again.

    Raises
    ------
    NothingCrossed
        No participant got them all.
    """
    name = f"{run.name}: case '{case}'"
    settings = run.section("themis", ThemisConfig).each_case()[case]
    data = load(run.section("data", DataConfig), derive(int(run.info["seed"]), "data"))
    (slots,) = choose_slots([len(data.test)], images, seed)
    observer = ThemisObserver(slots, first_trained(settings), settings.release.draws)
    replay(observer.note)
    seen = observer.seen()
    if seen is None:
        raise NothingCrossed(f"{name}: no participant got all releases: nothing to attack")
    chosen = np.argsort(slots)[-seen.shape[0] :]
    with np.load(run.directory / case / "generator.npz") as kept:
        packed = torch.from_numpy(kept["trained"])
    bound = settings.release_bounds[0]
    view = NoisyView(
        name=name,
        seen=seen,
        nodes=np.zeros(len(seen), np.int64),
        own=data.train,
        device=Compute(run.section("client", ClientConfig)),
        generator=NoiseGenerator(packed, bound).requires_grad_(False),
    )
    return Target(view, data.test.subset(chosen)), NoModel("the training images are public")


def first_trained(settings: ThemisConfig) -> int:
    """Return how many releases of the test set precede that of the trained noise."""
    untrained = len(settings.release_bounds) * settings.release.draws
    return 1 + untrained if settings.release.compare else 0


@dataclass(frozen=True)
class NoisyView(ReleasesView):
    """Noisy test images, as normalised as the models take them.

    Attributes
    ----------
    generator : NoiseGenerator
        μ, ρ and M of the release, which participants can estimate from public images.
    """

    generator: NoiseGenerator

    def compute(
        self,
        images: ImageSet,
        positions: Positions,
        seed: int,  # noqa: ARG002
        node: int | None = None,  # noqa: ARG002
    ) -> torch.Tensor:
        """Return normalised images; see :meth:`ReleasesView.compute`."""
        return images.batch(positions)[0][:, None].expand(-1, self.releases, -1, -1, -1)

    def protect(self, values: torch.Tensor, randomness: Randomness) -> torch.Tensor:
        """Return noisy images; see :meth:`ReleasesView.protect`. Without noise there is no μ."""
        if not self.noisy:
            return values
        e = torch.from_numpy(randomness.standard_normal(tuple(values.shape), dtype=np.float32))
        noisy: torch.Tensor = self.generator(values, e)
        return noisy

    def function_of(self, node: int) -> Release:  # noqa: ARG002
        """Return what images are released as, on average; see :meth:`ReleasesView.function_of`."""
        place = self.device.move_batch
        mean, std = place(self.own.mean), place(self.own.std)
        shift = place(self.generator.mu.detach()) if self.noisy else 0.0

        def release(images: torch.Tensor) -> torch.Tensor:
            x = (images - mean) / std + shift
            return x[:, None].expand(-1, self.releases, -1, -1, -1)

        return release

    def variance(self) -> torch.Tensor | float:
        """Return that of the noise, (C, H, W); see :meth:`ReleasesView.variance`."""
        return self.generator.sigma().square() if self.noisy else 1.0


class ThemisObserver:
    """Collects what each participant got of some test images under the trained noise.

    Parameters
    ----------
    slots : ndarray of shape (N,)
        For each test image, its number among those that are attacked, or -1.
    before : int
        How many releases of the whole test set come first.
    draws : int
        How many releases then follow that are wanted.
    """

    def __init__(self, slots: np.ndarray, before: int, draws: int) -> None:
        self._slots, self._before, self._draws = slots, before, draws
        self._got: dict[int, int] = {}
        self._seen: dict[int, torch.Tensor] = {}

    def note(self, exchanged: Exchanged) -> None:
        """Take note of a request and its reply."""
        if exchanged.kind != protocol.PREDICT:
            return
        words = protocol.words_of(exchanged.request)
        if words["variant"] != VARIANTS[0]:
            return
        images = protocol.arrays_of(exchanged.request)["images"]
        first, total = self._got.get(exchanged.node, 0), len(self._slots)
        self._got[exchanged.node] = first + len(images)
        draw, row = divmod(first, total)
        draw -= self._before
        if not 0 <= draw < self._draws:
            return
        slots = self._slots[row : row + len(images)]
        chosen = np.flatnonzero(slots >= 0)
        if exchanged.node not in self._seen:
            shape = (int((self._slots >= 0).sum()), self._draws, *images.shape[1:])
            self._seen[exchanged.node] = torch.zeros(shape)
        self._seen[exchanged.node][slots[chosen], draw] = torch.from_numpy(images[chosen])

    def seen(self) -> torch.Tensor | None:
        """Return the releases, (n, draws, C, H, W), as somebody got them who was never away."""
        wanted = (self._before + self._draws) * len(self._slots)
        whole = (node for node, got in self._got.items() if got >= wanted)
        node = next(whole, None)
        return None if node is None else self._seen[node]
