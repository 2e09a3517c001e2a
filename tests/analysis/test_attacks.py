"""Attacks on what the cloud sees: they succeed where they must, and are judged rightly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from pudica.analysis.attacks import (
    FacemixView,
    infer_attributes,
    infer_identity,
    reconstruct,
    score_mixtures,
    score_plain,
    train_generator,
    unmix,
)
from pudica.analysis.attacks.reconstruction import Discriminator, Generator, Reconstruction, chamfer
from pudica.analysis.attacks.unmixing import match_rows, run_fast_ica
from pudica.analysis.runs import open_run
from pudica.clients.app import app as client_app
from pudica.clients.data import ImageSet
from pudica.clients.data.images import Positions
from pudica.clients.shields.draws import draw_orthogonal
from pudica.clients.shields.front import activation_shape
from pudica.models.errors import RequestError
from pudica.simulations.engines.inprocess import InProcessGrid
from pudica.simulations.engines.local import build_run_config, build_server_context
from pudica.strategies.app import app as server_app
from pudica.strategies.loading import load_experiment

SETTINGS = [
    "data.limit=600",
    "data.attributes=['label=3', 'label:5-9']",
    "facemix.edges=1",
    "facemix.request=32",
    "facemix.training={epochs: 5, batch_size: 32, optimizer: {name: adam, learning_rate: 0.003}}",
    "facemix.cases={mixed: {}, edge: {place: edge}, blurred: {place: cloud, shield: {name: "
    "low-resolution, side: 8}}, anonymised: {place: cloud, anonymiser: {}}}",
]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run an experiment once for all attacks."""
    place = tmp_path_factory.mktemp("facemix") / "run"
    experiment = load_experiment("facemix-digits", SETTINGS)
    config = build_run_config(experiment, place, "inprocess")
    server_app(InProcessGrid(client_app, 1, config), build_server_context(config))
    return place


@pytest.fixture
def mixed(directory: Path) -> FacemixView:
    """Return what the cloud sees of mixed features."""
    return FacemixView.of(open_run(directory), "mixed")


@pytest.mark.slow
def test_rows_say_which_images_are_in_them(mixed: FacemixView) -> None:
    images = mixed.data.test
    for seen in mixed.observations(images, 0, "test"):
        features = mixed.features(images, seen.images)
        together: dict[tuple[int, ...], list[torch.Tensor]] = {}
        for row, group in zip(seen.rows, seen.groups, strict=True):
            together.setdefault(tuple(map(int, group)), []).append(row.flatten().double())
        for group, rows in together.items():
            members = [list(seen.images).index(image) for image in group]
            base, mixtures = features[members].flatten(1).double().T, torch.stack(rows, 1)
            # A mixture is a sum of its group's features, and of no others.
            weights = torch.linalg.lstsq(base, mixtures).solution
            torch.testing.assert_close(base @ weights, mixtures, atol=1e-4, rtol=0)


def test_networks_learn_what_is_in_the_clear_and_little_of_mixtures(mixed: FacemixView) -> None:
    """Chance is 0.5; with 200 test images a rate is within 0.1 of it in 99 of 100 cases."""
    clear = infer_attributes(mixed.without_shield(), 3, seed=0)
    hidden = infer_attributes(mixed, 3, seed=0)
    assert clear.success > 0.85
    assert hidden.success < clear.success - 0.2
    assert hidden.chance == 0.5


def test_people_are_told_apart_where_features_are_in_the_clear(mixed: FacemixView) -> None:
    """Digits stand for people: ten of them."""
    parts = mixed.data.train, mixed.data.test
    clear = infer_identity(mixed.without_shield(), *parts, epochs=4, seed=0)
    hidden = infer_identity(mixed, *parts, epochs=4, seed=0)
    assert clear.success > 0.8
    assert clear.chance == 0.1
    assert hidden.success < 0.5


def sources(count: int, side: int, seed: int = 0, channels: int = 4) -> torch.Tensor:
    """Return maps whose gradients are independent and have heavy tails."""
    rng = np.random.default_rng(seed)
    steps = rng.laplace(size=(count, channels, side, side)) ** 3
    return torch.from_numpy(np.cumsum(steps, axis=3)).float()


def test_independent_sources_of_a_known_group_are_found() -> None:
    true = sources(8, 32)
    matrix = draw_orthogonal((8, 8), np.random.default_rng(1))
    mixtures = torch.einsum("ij,jchw->ichw", matrix, true)
    columns, correlations = match_rows(true.numpy(), run_fast_ica(mixtures, seed=0).numpy())
    assert sorted(columns) == list(range(8))
    assert correlations.min() > 0.95
    assert match_rows(true.numpy(), mixtures.numpy())[1].mean() < 0.9


def test_the_scale_and_sign_of_positive_sources_are_found() -> None:
    true = sources(4, 32).abs()
    matrix = draw_orthogonal((4, 4), np.random.default_rng(1))
    found = run_fast_ica(torch.einsum("ij,jchw->ichw", matrix, true), seed=0)
    columns, correlations = match_rows(true.numpy(), found.numpy())
    assert correlations.min() > 0.95
    scales = found[columns].flatten(1).norm(dim=1) / true.flatten(1).norm(dim=1)
    torch.testing.assert_close(scales, torch.ones(4), atol=0.1, rtol=0)
    assert (found[columns].mean((1, 2, 3)) > 0).all()


def test_unmixed_maps_are_scored_against_the_truth(mixed: FacemixView) -> None:
    unmixed = unmix(mixed, requests=1, known_groups=True, seed=0)
    assert len(unmixed.images) == len(set(unmixed.images.tolist())) == 32
    features = mixed.features(mixed.data.test, unmixed.images)
    torch.testing.assert_close(unmixed.true, features.cpu())
    assert 0 <= unmixed.recognised <= 1
    clear = mixed.without_shield()
    plain = np.mean([*score_plain(mixed, unmixed.images).values()])
    assert plain == pytest.approx(score_mixtures(clear, 1, seed=0).success)
    assert score_mixtures(clear, 1, seed=0).correlations.min() > 0.999
    assert score_mixtures(clear, 9, seed=0).success > score_mixtures(mixed, 9, seed=0).success + 0.1


def test_known_groups_are_unmixed_one_by_one(mixed: FacemixView) -> None:
    """Of independent sources: eight of a group are found, thirty-two of a request less well."""

    class Sources(FacemixView):
        """Features are independent of each other, as no images' are."""

        def features(self, images: ImageSet, chosen: Positions) -> torch.Tensor:
            channels, side, _ = self.model.shield.shape
            return self.compute.move_batch(sources(len(images), side, channels=channels)[chosen])

    view = Sources(**vars(mixed))
    found = {known: unmix(view, 2, known, seed=0) for known in (True, False)}
    left = score_mixtures(view, 2, seed=0)
    assert len(found[True].correlations) == 64
    assert found[True].correlations.mean() > 0.97
    assert found[True].correlations.mean() > found[False].correlations.mean() + 0.02
    assert left.correlations.mean() < 0.8


def test_the_chamfer_distance_takes_the_nearest_each_way() -> None:
    true = torch.tensor([0.0, 1.0]).reshape(1, 2, 1, 1, 1)
    drawn = torch.tensor([0.1, 0.2]).reshape(1, 2, 1, 1, 1)
    # Of 0 the nearest is 0.1, of 1 it is 0.2; of both drawn ones it is 0.
    wanted = (0.1 + 0.8) / 2 + (0.1 + 0.2) / 2
    assert float(chamfer(true, drawn)) == pytest.approx(wanted)
    assert float(chamfer(true, true.flip(1))) == 0


@pytest.mark.slow
def test_images_are_rebuilt_from_what_is_in_the_clear(mixed: FacemixView) -> None:
    clear = mixed.without_shield()
    seen = reconstruct(clear, train_generator(clear, 6, seed=0), 64, seed=0).similarity()
    assert seen["psnr"] > seen["psnr_of_the_mean"] + 3
    hidden = reconstruct(mixed, train_generator(mixed, 2, seed=0), 64, seed=0)
    assert hidden.true.shape == hidden.drawn.shape == (64, 1, 8, 8)
    assert hidden.similarity()["psnr"] < seen["psnr"] - 3


def test_the_critic_sees_an_image_beside_its_feature_map() -> None:
    critic = Discriminator(5, (3, 8, 8)).eval()
    maps, images = torch.randn(2, 5, 4, 4), torch.rand(2, 3, 3, 8, 8)
    beside = [
        torch.cat([interpolate(maps[i : i + 1], size=8), images[i, k][None]], 1)
        for i in range(2)
        for k in range(3)
    ]
    wanted = critic.rest(critic.first(torch.cat(beside)))
    torch.testing.assert_close(critic(maps, images), wanted)


def test_each_group_is_rebuilt_once(mixed: FacemixView) -> None:
    generator = Generator(mixed.model.shield.shape[0], group=8, image=(1, 8, 8)).eval()
    rebuilt = reconstruct(mixed, mixed.compute.move_model(generator), 40, seed=0)
    assert len(torch.unique(rebuilt.true.flatten(1), dim=0)) == 40


def test_people_are_learnt_from_what_the_cloud_computes_before_it_answers(directory: Path) -> None:
    run = open_run(directory)
    shapes = {
        case: activation_shape(view.copy_trunk(), view.model.shield.shape)
        for case in ("mixed", "blurred", "anonymised")
        for view in [FacemixView.of(run, case)]
    }
    assert len(set(shapes.values())) == 1


def test_an_anonymised_image_is_plain_in_the_clear(directory: Path) -> None:
    view = FacemixView.of(open_run(directory), "anonymised")
    images = view.data.test
    (seen, *_) = view.without_shield().observations(images, 0, "test")
    plain, _ = images.batch(seen.images)
    assert torch.equal(seen.rows.cpu(), plain)
    (seen, *_) = view.observations(images, 0, "test")
    assert not torch.allclose(seen.rows.cpu(), images.batch(seen.images)[0], atol=1e-3)


def test_similarity_is_reported_beside_that_of_the_mean_image() -> None:
    true = torch.zeros(3, 1, 8, 8)
    found = Reconstruction(true, true + 0.1, np.arange(3), torch.full((1, 8, 8), 0.2)).similarity()
    assert found["mse"] == pytest.approx(0.01)
    assert found["mse_of_the_mean"] == pytest.approx(0.04)
    assert found["psnr"] == pytest.approx(20)


def test_what_can_not_be_attacked_says_why(directory: Path, tmp_path: Path) -> None:
    run = open_run(directory)
    for case, why in {
        "edge": "nothing leaves the edge",
        "other": "no case 'other'; allowed: mixed, edge, blurred, anonymised",
    }.items():
        with pytest.raises(RequestError, match=why):
            FacemixView.of(run, case)
