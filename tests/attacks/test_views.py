"""Views hold what crossed, bit by bit, and attacks on them succeed where nothing protects."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pudica.analysis.attacks import Effort, Target
from pudica.analysis.attacks.divisors import CommonDivisors
from pudica.analysis.attacks.inversion import compare
from pudica.analysis.attacks.known_pairs import KNOWN, KnownPairs
from pudica.analysis.attacks.labels import LabelInference
from pudica.analysis.attacks.matching import CandidateMatching
from pudica.analysis.attacks.moments import Moments
from pudica.analysis.attacks.total_variation import TotalVariationInversion
from pudica.analysis.runs import Run, open_run
from pudica.analysis.views import dlmt, facemix, themis
from pudica.clients import protocol
from pudica.models.errors import RequestError
from pudica.simulations import run
from pudica.simulations.replaying import replay
from pudica.strategies.core.wire_log import Exchanged

EFFORT = Effort(epochs=2, images=200, requests=1, seed=0)
Note = Callable[[Exchanged], None]
THEMIS = {"data.limit": 300, "training.epochs": 1, "themis.epochs": 1, "themis.examiner": None}
DLMT = {"data.limit": 300, "dlmt.training.epochs": 1, "dlmt.measures": False}
FACEMIX = {"data.limit": 600, "facemix.training.epochs": 1}


def make(directory: Path, name: str, settings: dict[str, object]) -> Run:
    return open_run(run(name, set=settings, engine="inprocess", out=directory).directory)


def replaying(opened: Run, case: str, *notes: Note) -> Callable[[Note], None]:
    """Return what runs a case once more, and shows each exchange to others, too."""

    def again(note: Note) -> None:
        def tell(exchanged: Exchanged) -> None:
            for each in (*notes, note):
                each(exchanged)

        replay(opened, case, tell, lambda _: None)

    return again


class Predictions:
    """The images of all questions to the first participant, as the messages had them."""

    def __init__(self) -> None:
        self.node: int | None = None
        self.images: list[np.ndarray] = []

    def note(self, exchanged: Exchanged) -> None:
        if exchanged.kind == protocol.PREDICT and self.node in (None, exchanged.node):
            self.node = exchanged.node
            self.images.append(protocol.arrays_of(exchanged.request)["images"])


class Images:
    """All images that owners sent, as the messages had them."""

    def __init__(self) -> None:
        self.images: list[np.ndarray] = []

    def note(self, exchanged: Exchanged) -> None:
        words = protocol.words_of(exchanged.request)
        if exchanged.kind == protocol.IMAGES and words["case"] == "MAT(256)+MMT(10)":
            self.images.append(protocol.arrays_of(exchanged.reply)["images"])


# ------------------------------------------------------------------------------ THEMIS


@pytest.fixture(scope="module")
def competition(tmp_path_factory: pytest.TempPathFactory) -> tuple[Target, Predictions]:
    """Return what participants of a short competition saw, beside their messages."""
    settings = {**THEMIS, "themis.release.images_per_message": 7, "themis.release.M": [1.0, 0.5]}
    opened = make(tmp_path_factory.mktemp("themis"), "themis-digits", settings)
    wire = Predictions()
    (target, *_) = themis.observe(opened, "main", 10_000, 0, replaying(opened, "main", wire.note))
    return target, wire


def test_participants_see_the_trained_release_of_the_first_m(
    competition: tuple[Target, Predictions],
) -> None:
    """Plain images and untrained noise, which are sent for comparison alone, are left out."""
    target, wire = competition
    count, draws = target.view.count, target.view.releases
    crossed = np.concatenate(wire.images).reshape(-1, count, *target.view.shape)
    assert len(crossed) == 1 + 2 * draws + 2 * draws
    wanted = crossed[1 + 2 * draws : 1 + 3 * draws]
    for draw in range(draws):
        seen = target.view.seen[:, draw].numpy()
        assert {image.tobytes() for image in seen} == {image.tobytes() for image in wanted[draw]}
    noise = target.view.seen - target.view.compute(target.images, slice(None), 0)
    assert float(noise.mean()) == pytest.approx(
        float(
            target.view.function_of(0)(target.pixels).mean()
            - target.view.compute(target.images, slice(None), 0).mean()
        ),
        abs=0.05,
    )


def test_noise_like_theirs_has_the_same_deviation(competition: tuple[Target, Predictions]) -> None:
    view = competition[0].view
    values = view.compute(competition[0].images, slice(None), 0)
    alike = view.protect(values, np.random.default_rng(0))
    for statistic in (torch.mean, torch.std):
        own, other = (float(statistic(part - values)) for part in (view.seen, alike))
        assert own == pytest.approx(other, abs=0.02)


def test_test_images_are_recognised_behind_noise(competition: tuple[Target, Predictions]) -> None:
    target = competition[0]
    found = CandidateMatching().run(target, EFFORT).metrics
    assert found["success"] > 0.9
    assert found["success_in_the_clear"] == 1
    drawn = TotalVariationInversion().run(target, EFFORT).metrics
    assert drawn["success_low"] > 10 * drawn["chance"]
    assert drawn["psnr"] > drawn["psnr_once"] > drawn["psnr_of_the_mean"]
    labels = LabelInference().run(target, EFFORT).metrics
    assert labels["success_low"] > 5 * labels["chance"]


# -------------------------------------------------------------------------------- DLMT


@pytest.fixture(scope="module")
def disguised(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Target, Images]:
    """Return what a cloud gets of disguised images, beside the messages."""
    cases = {"original": {}, "MAT(256)+MMT(10)": {"shield": "MAT(256)+MMT(10)"}}
    cases |= {"Kiya": {"shield": "Kiya"}, "Sharma": {"shield": "Sharma(4)"}}
    cases |= {"trained by owners": {"train": "federated"}}
    settings = {**DLMT, "dlmt.cases": cases}
    opened = make(tmp_path_factory.mktemp("dlmt"), "dlmt-digits", settings)
    wire = Images()
    (target, *_) = dlmt.observe(
        opened, "MAT(256)+MMT(10)", 10_000, 0, replaying(opened, "MAT(256)+MMT(10)", wire.note)
    )
    return opened, target, wire


def observe(opened: Run, case: str) -> Target:
    target, _ = dlmt.observe(opened, case, 10_000, 0, replaying(opened, case))
    return target


def test_the_cloud_sees_the_disguised_images_that_crossed(
    disguised: tuple[Run, Target, Images],
) -> None:
    _, target, wire = disguised
    view = target.view
    assert isinstance(view, dlmt.DisguisedView)
    crossed = np.concatenate(wire.images)
    assert view.count == len(crossed) == len(target.images)
    assert {i.tobytes() for i in view.received} == {i.tobytes() for i in crossed}
    assert set(view.nodes) == {0, 1, 2}


@pytest.mark.parametrize("attack", [CommonDivisors(), Moments(), KnownPairs()])
def test_matrix_transformations_are_undone(
    disguised: tuple[Run, Target, Images], attack: CommonDivisors | Moments | KnownPairs
) -> None:
    found = attack.run(disguised[1], EFFORT).metrics
    assert found["success"] > 0.95
    assert found["psnr"] > found["psnr_of_the_mean"] + 10


def test_images_under_one_key_are_undone_together(disguised: tuple[Run, Target, Images]) -> None:
    """Owners share a key, so that a few images of each are enough."""
    view = disguised[1].view
    assert isinstance(view, dlmt.DisguisedView)
    assert set(view.keys) == {0}
    assert set(view.nodes) == {0, 1, 2}
    few = replace(view, keys=np.arange(view.count))
    assert "1 images under one key are fewer" in Moments().explain_unfit(
        [Target(few, disguised[1].images)]
    )


def test_known_pairs_are_no_part_of_the_attacked(disguised: tuple[Run, Target, Images]) -> None:
    target = disguised[1]
    found = KnownPairs().run(target, EFFORT)
    pairs = {image.tobytes() for image in target.pixels.numpy()[:KNOWN]}
    assert not pairs & {image.tobytes() for image in found.pictures["original"]}


def test_a_disguise_without_factors_is_undone_by_moments(
    disguised: tuple[Run, Target, Images],
) -> None:
    kiya = observe(disguised[0], "Kiya")
    assert "no composition of MAT" in CommonDivisors().explain_unfit([kiya])
    found = Moments().run(kiya, EFFORT).metrics
    assert found["success_low"] > 20 * found["chance"]


def test_what_the_key_hides_is_not_computed(disguised: tuple[Run, Target, Images]) -> None:
    for attack in (CandidateMatching(), TotalVariationInversion()):
        assert "secret key" in attack.explain_unfit([disguised[1]])
        assert not attack.explain_unfit([observe(disguised[0], "original")])
    with pytest.raises(NotImplementedError, match="secret key"):
        disguised[1].view.function_of(0)


def test_plain_images_are_seen_as_they_are(disguised: tuple[Run, Target, Images]) -> None:
    target = observe(disguised[0], "original")
    assert torch.equal(target.view.seen[:, 0], target.pixels)
    assert "no disguised images cross" in Moments().explain_unfit([target])


def test_on_random_images_disguises_are_not_undone(disguised: tuple[Run, Target, Images]) -> None:
    """Of 300 independent guesses at most 7 are right; more: less than 1 in 10,000."""
    view = disguised[1].view
    assert isinstance(view, dlmt.DisguisedView)
    noise = np.random.default_rng(0).integers(0, 10_000, view.received.shape)
    seen = torch.from_numpy(noise).float()[:, None] / 10_000
    blind = Target(replace(view, seen=seen, received=noise), disguised[1].images)
    for attack in (CommonDivisors(), Moments(), KnownPairs()):
        found = attack.run(blind, EFFORT).metrics
        assert found["success"] * blind.view.count <= 7


def test_owners_that_train_send_no_images(disguised: tuple[Run, Target, Images]) -> None:
    opened, case = disguised[0], "trained by owners"
    target, _ = dlmt.targets(opened)[case](opened, case, 10, 0, replaying(opened, case))
    assert not isinstance(target, Target)
    assert "needs a Target" in CandidateMatching().explain_unfit([target])


def test_images_disguised_beforehand_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    observer = dlmt.DlmtObserver("run: case 'main'", "main", 10, 0)
    disguised = SimpleNamespace(train=SimpleNamespace(stored=SimpleNamespace(kind="numbers")))
    monkeypatch.setitem(vars(observer), "_data", disguised)
    with pytest.raises(RequestError, match="disguised beforehand"):
        observer.target()


# ----------------------------------------------------------------------------- FaceMix


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return make(tmp_path_factory.mktemp("facemix"), "facemix-digits", FACEMIX)


def rows(opened: Run, case: str) -> Target:
    targets: Sequence[object] = facemix.targets(opened)[case](opened, case, 64, 0, None)
    (found,) = (each for each in targets if isinstance(each, Target))
    return found


def test_rows_of_mixtures_are_orthogonal_combinations_of_their_group(mixed: Run) -> None:
    target = rows(mixed, "mixed")
    view = target.view
    assert view.is_keyed
    clear = target.in_the_clear(0).view.seen.flatten(1)
    both = [part.reshape(8, 8, -1) for part in (clear, view.seen.flatten(1))]
    sums = [part.square().sum((1, 2)) for part in both]
    torch.testing.assert_close(sums[0], sums[1])
    assert "secret key" in CandidateMatching().explain_unfit([target])


def test_what_only_shrinks_is_matched_as_it_shrinks(mixed: Run) -> None:
    """The adversary knows that images were reduced, and compares reduced ones."""
    assert CandidateMatching().run(rows(mixed, "low resolution 4"), EFFORT).metrics["success"] == 1
    assert CandidateMatching().run(rows(mixed, "cloud"), EFFORT).metrics["success"] == 1
    noisy = CandidateMatching().run(rows(mixed, "noise 4"), EFFORT).metrics
    assert 5 * noisy["chance"] < noisy["success"] < noisy["success_in_the_clear"]


def test_drawings_are_compared_with_all_candidates() -> None:
    true = torch.rand(50, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    found = compare(true[:10], true)
    assert found["success"] == 1
    assert found["success_high"] == 1
    assert compare(true[10:20], true)["success"] == 0
