"""What a device of split learning may release: see :mod:`pudica.clients.runtime.odometer`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
import torch

from pudica.clients import shields
from pudica.clients.assignments import USUAL_DELTA, EdgeAssignment
from pudica.clients.data import Part, Splits, load_once
from pudica.clients.runtime import odometer
from pudica.clients.runtime.odometer import ACTIVATIONS, COUNTS, Limits, Odometer, Planned, Release
from pudica.clients.runtime.releasing import Releases, function_of
from pudica.clients.runtime.vault import Vault
from pudica.clients.shields import Mechanism, Shield
from pudica.clients.shields.integers import CountsConfig
from pudica.models.randomness import SystemGenerator

Draw = Callable[[str], np.ndarray]
HeldOut = Literal["validation", "test"]


class OpenReleases:
    """The releases of a device that keeps no account of them, such as that of somebody's own app.

    Parameters
    ----------
    guaranteed : bool
        Whether each release has a guarantee for an image; in all they add up.
    reports : bool
        Whether the device says how often models are right.

    Attributes
    ----------
    counts : bool
        Whether it is noted what leaves.
    keeps : bool
        Whether what has left is kept, to be sent again; then noise is new each time.
    in_the_clear : bool
        Whether test activations may leave without noise, to compare.
    """

    counts = keeps = in_the_clear = False

    def __init__(self, guaranteed: bool, reports: bool) -> None:
        self.guaranteed = guaranteed
        self.reports = reports

    def release_training(
        self,
        epoch: int,  # noqa: ARG002
        steps: Iterable[int],
        front: bytes,  # noqa: ARG002
        draw: Draw,
    ) -> dict[str, np.ndarray]:
        """Return what leaves of some batches of an epoch, by place.

        Parameters
        ----------
        front : bytes
            What tells the front from others.
        draw : callable
            Computes what leaves from a place.
        """
        return {str(step): draw(str(step)) for step in steps}

    def release_test(
        self,
        starts: Iterable[int],
        front: bytes,  # noqa: ARG002
        noisy: bool,  # noqa: ARG002
        draw: Draw,
    ) -> dict[str, np.ndarray]:
        """Return what leaves of some batches of test images, by the first image of each."""
        return {str(start): draw(str(start)) for start in starts}

    def release_counts(
        self,
        part: Part,
        asked: Sequence[bytes | int],  # noqa: ARG002
        names: Sequence[str],
        most: int,  # noqa: ARG002
        count: Callable[[], list[int]],
    ) -> dict[str, int]:
        """Return counts on one part, behind noise where something is promised.

        Parameters
        ----------
        asked : sequence of bytes or int
            What they are a function of, besides the images.
        names : sequence of str
            Of the counts.
        most : int
            What a count can be.
        count : callable
            Counts.

        Raises
        ------
        RuntimeError
            On training images; or if the device says nothing.
        BudgetExhausted
            If it has said as much as it may.
        """
        self._held_out(part)
        return dict(zip(names, count(), strict=True))

    def _held_out(self, part: Part) -> HeldOut:
        """Return a part of whose images something may be said; raise RuntimeError otherwise."""
        if part == "train":
            raise RuntimeError(f"nothing is counted on {part} images")
        if not self.reports:
            raise RuntimeError("this device keeps to itself how often it was right")
        return part


class EdgeReleases(OpenReleases):
    """The releases of one device in one case of an experiment.

    Where something is promised to each image, nothing leaves but what is paid for.

    Raises
    ------
    RuntimeError
        Something is promised, and can't be kept: with images that are normalised by one another,
        or a larger δ than this device allows.
    """

    def __init__(
        self, vault: Vault, assignment: EdgeAssignment, data: Splits, shield: Shield
    ) -> None:
        super().__init__(assignment.guaranteed, assignment.report)
        self._vault = vault
        self._assignment = assignment
        self._data = data
        self._shield = shield
        self._terms = assignment.fingerprint()
        self.counts = bool(self.guaranteed or assignment.budget or assignment.limits)
        self.keeps = self.guaranteed
        self.in_the_clear = assignment.plain_to_cloud
        if self.guaranteed:
            self._check_terms()

    def _check_terms(self) -> None:
        a = self._assignment
        if a.data.uses_training_statistics:
            raise RuntimeError(
                "nothing can be promised to images that are normalised by statistics of all: the "
                "organiser wants data.normalize: training; allowed: none, dataset"
            )
        delta = getattr(self._shield.config, "delta", 0.0)
        if a.limits and delta > self.delta:
            raise RuntimeError(
                f"the organiser wants δ = {delta:.4g}; this device allows {self.delta:.4g} at most "
                f"(it has {self._count_images()} images)"
            )

    # ---------------------------------------------------------------------------- limits

    @property
    def delta(self) -> float:
        """The δ of all releases: as this device says, else one in as many as it has images."""
        limits, budget = self._assignment.limits, self._assignment.budget
        if limits:
            return limits.delta or min(USUAL_DELTA, 1 / max(1, self._count_images()))
        return budget.delta if budget else USUAL_DELTA

    def _count_images(self) -> int:
        """Return how many images the device has, also those that the organiser leaves out."""
        a, data = self._assignment, self._data
        whole = {"limit": None, "min_per_class": 1}
        if a.data.model_dump(include=set(whole)) != whole:
            everything = a.data.model_copy(update=whole)
            data = load_once(everything.model_dump_json(), a.data_seed)
        return sum(len(a.share(data, part)) for part in get_args(Part))

    @cached_property
    def _releases(self) -> Releases:
        a, limits = self._assignment, []
        if a.budget:
            # Noise that is drawn from a seed promises nothing: then only releases are counted.
            epsilon = a.budget.epsilon if self.guaranteed else None
            limits.append(Limits(epsilon, a.budget.delta, a.releases or None, (a.run, a.case)))
        if a.limits:
            limits.append(Limits(a.limits.epsilon, self.delta, a.limits.activations))
        anchor = odometer.anchor_of(self._vault.lasting) if a.limits else None
        return Releases(self._vault, Odometer(self._vault, anchor), limits, self.guaranteed)

    def check(self) -> None:
        """See that all that this case may release fits beside what was released before.

        Raises
        ------
        BudgetExhausted
            If it does not.
        RequestError
            If there is no noise for an ε of the counts.
        RuntimeError
            If the device joined this case on other terms before.
        """
        self._releases.check(self.list_planned())
        if not self.guaranteed:
            return
        for report in self._assignment.reports.values():
            shields.build(CountsConfig(epsilon=report.epsilon), (2,), 1)
        if not self._vault.pin(f"{self._assignment.case}-terms", self._terms):
            raise RuntimeError(
                f"this device joined the case '{self._assignment.case}' of this run on other "
                "terms; a budget can't be begun anew"
            )

    def list_planned(self) -> list[Planned]:
        """Return all that this case may release."""
        a = self._assignment
        found = [self._plan_training()]
        found += [self._plan_test(True)] if a.test_features else []
        found += [self._plan_counts(part) for part in a.reports if a.report]
        return found

    def _plan_training(self) -> Planned:
        return Planned(self._release(ACTIVATIONS, "train"), self._assignment.releases)

    def _plan_test(self, noisy: bool) -> Planned:
        release = self._release(ACTIVATIONS if noisy else odometer.IN_THE_CLEAR, "test")
        return Planned(release, int(self._assignment.test_features))

    def _plan_counts(self, part: HeldOut) -> Planned:
        reports = self._assignment.reports.get(part)
        epsilon = reports.epsilon if reports and self.guaranteed else None
        release = Release(
            **self._common(COUNTS, part),
            noise="laplace" if epsilon else None,
            ratio=epsilon or 0.0,
        )
        return Planned(release, reports.count if reports else 0)

    def _release(self, what: str, part: Part) -> Release:
        # Imported late: it takes seconds, which only those pay who are promised something.
        from pudica.clients.shields.accounting import Cost

        cost = Cost(None)
        if isinstance(self._shield, Mechanism) and what == ACTIVATIONS:
            cost = Cost.of(self._shield)
        return Release(**self._common(what, part), noise=cost.kind, ratio=cost.ratio)

    def _common(self, what: str, part: Part) -> dict[str, Any]:
        a, division = self._assignment, self._division
        return {"run": a.run, "case": a.case, "what": what, "part": part, "division": division}

    @cached_property
    def _division(self) -> str:
        """What tells how images were divided into parts: all of it the organiser may choose."""
        a = self._assignment
        place = (a.data_seed, a.partition, a.partitions, a.whole)
        return function_of(self._data.content_hash, a.data.model_dump_json(), *place)

    # -------------------------------------------------------------------------- releasing

    def release_training(
        self, epoch: int, steps: Iterable[int], front: bytes, draw: Draw
    ) -> dict[str, np.ndarray]:
        """Return what leaves of some batches of an epoch; see :meth:`Releases.release`."""
        if not self.counts:
            return super().release_training(epoch, steps, front, draw)
        functions = {str(step): self._function("train", epoch, step, front) for step in steps}
        group = self._group("train", epoch)
        return self._releases.release(self._plan_training(), group, functions, draw)

    def release_test(
        self, starts: Iterable[int], front: bytes, noisy: bool, draw: Draw
    ) -> dict[str, np.ndarray]:
        """Return what leaves of some batches of test images, by the first image of each."""
        if not self.counts:
            return super().release_test(starts, front, noisy, draw)
        places = map(str, starts)
        functions = {place: self._function("test", place, str(noisy), front) for place in places}
        group = self._group("test", str(noisy))
        return self._releases.release(self._plan_test(noisy), group, functions, draw)

    def release_counts(
        self,
        part: Part,
        asked: Sequence[bytes | int],
        names: Sequence[str],
        most: int,
        count: Callable[[], list[int]],
    ) -> dict[str, int]:
        """Return counts on one part; see :meth:`OpenReleases.release_counts`."""
        if not self.counts:
            return super().release_counts(part, asked, names, most, count)
        part = self._held_out(part)
        planned = self._plan_counts(part)
        if self.guaranteed and planned.release.noise is None:
            raise RuntimeError(f"right answers on {part} images are counted behind noise only")

        def draw(_: str) -> np.ndarray:
            return self._add_noise(count(), planned.release.ratio, most)

        functions = {"": self._function("counts", part, *asked)}
        found = self._releases.release(planned, self._group("counts", part), functions, draw)[""]
        return dict(zip(names, found.tolist(), strict=True))

    def _add_noise(self, counts: list[int], epsilon: float, most: int) -> np.ndarray:
        """Return counts as they leave, none below 0 or above what there is."""
        answer = torch.tensor([counts], dtype=torch.float32)
        if self.guaranteed:
            shield = shields.build(CountsConfig(epsilon=epsilon), (len(counts),), 1)
            answer, _ = shield.protect(answer, SystemGenerator())
        return answer[0].clamp(0, most).to(torch.int64).numpy()

    def _function(self, *what: str | int | bytes) -> str:
        return function_of(self._terms, self._data.content_hash, *what)

    def _group(self, *what: str | int) -> str:
        a = self._assignment
        return function_of(a.run, a.case, self._terms, *what)
