"""Supervised training: resumable, reproducible, best epoch kept."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from pudica import models
from pudica.clients.data import DataConfig, Splits, load
from pudica.models import Compute, ComputeConfig, NoiseGenerator, Training, TrainingConfig
from pudica.models.augmentation import crop_flip
from pudica.models.errors import RequestError
from pudica.models.randomness import derive, numpy_generator, secret_normal, torch_generator

CPU = Compute(ComputeConfig(device="cpu"))


@pytest.fixture(scope="module")
def digits() -> Splits:
    return load(DataConfig(name="digits", limit=300), seed=0)


def training(seed: int = 0, own_noise: bool = False, **config: object) -> Training:
    model = models.build("cnn-small", num_classes=10, channels=1, image_size=8, seed=seed)
    schedule = TrainingConfig.model_validate({"epochs": 4, "learning_rate": 0.05, **config})
    noise = (
        NoiseGenerator.untrained((1, 8, 8), 1.0, torch_generator(0, "own")) if own_noise else None
    )
    return Training(model, schedule, seed, CPU, noise)


@pytest.mark.parametrize("own_noise", [False, True])
@pytest.mark.parametrize("augment", ["none", "crop-flip"])
def test_stopping_after_any_epoch_and_going_on_elsewhere_changes_nothing(
    digits: Splits, augment: str, own_noise: bool
) -> None:
    undisturbed = training(augment=augment, own_noise=own_noise)
    while not undisturbed.finished:
        undisturbed.run_epoch(digits.train, digits.validation)

    resumed = training(augment=augment, own_noise=own_noise)
    while not resumed.finished:
        resumed.run_epoch(digits.train, digits.validation)
        kept = {key: value.clone() for key, value in resumed.tensors().items()}
        losses, accuracies = resumed.losses, resumed.accuracies
        resumed = training(seed=0, augment=augment, own_noise=own_noise)
        resumed.restore(kept, losses, accuracies)

    assert resumed.losses == undisturbed.losses
    assert resumed.accuracies == undisturbed.accuracies
    for key, value in undisturbed.tensors().items():
        assert torch.equal(value, resumed.tensors()[key]), key


def test_what_dropout_draws_comes_from_the_seed_alone(digits: Splits) -> None:
    losses = []
    for before in (0, 1):
        torch.manual_seed(before)  # of whoever used PyTorch's own generator last
        state = torch.get_rng_state()
        model = models.build("cnn-small", num_classes=10, channels=1, image_size=8, seed=0)
        model = torch.nn.Sequential(torch.nn.Dropout(0.5), model)
        trained = Training(model, TrainingConfig(epochs=2, learning_rate=0.05), 0, CPU)
        for _ in range(2):
            trained.train_epoch(digits.train)
        losses.append(trained.losses)
        assert torch.equal(torch.get_rng_state(), state)
    assert losses[0] == losses[1]


def test_the_cosine_schedule_falls_to_zero_and_the_other_by_steps() -> None:
    cosine = TrainingConfig(epochs=4, learning_rate=0.2, schedule="cosine")
    rates = [0.2, 0.1 * (1 + 0.5**0.5), 0.1, 0.1 * (1 - 0.5**0.5), 0.0]
    assert [cosine.learning_rate_at(epoch) for epoch in range(5)] == pytest.approx(rates)
    steps = TrainingConfig(learning_rate=0.2, step_size=2, gamma=0.5)
    assert [steps.learning_rate_at(epoch) for epoch in range(5)] == pytest.approx(
        [0.2, 0.2, 0.1, 0.1, 0.05]
    )


def test_an_epoch_is_trained_at_its_rate(digits: Splits) -> None:
    run = training(schedule="cosine", epochs=2)
    for epoch in range(2):
        run.train_epoch(digits.train)
        assert run.optimizer.param_groups[0]["lr"] == run.config.learning_rate_at(epoch)
    assert run.epoch == len(run.losses) == 2
    assert not run.accuracies


def test_the_best_epoch_on_validation_is_kept(digits: Splits) -> None:
    run = training(learning_rate=1.5, momentum=0.0)  # unstable on purpose
    states = []
    while not run.finished:
        run.run_epoch(digits.train, digits.validation)
        states.append({k: v.clone() for k, v in run.model.state_dict().items()})
    best = states[int(np.argmax(run.accuracies))]
    assert all(torch.equal(best[key], run.best[key]) for key in best)


def test_training_stops_early_when_validation_gets_no_better(digits: Splits) -> None:
    # With a vanishing learning rate nothing gets better after the first epoch.
    run = training(epochs=20, patience=2, learning_rate=1e-12)
    while not run.finished:
        run.run_epoch(digits.train, digits.validation)
    assert run.epoch == 3


def test_a_last_batch_of_one_example_is_no_trouble(digits: Splits) -> None:
    run = training(batch_size=len(digits.train) - 1, epochs=1)
    run.run_epoch(digits.train, digits.validation)
    assert np.isfinite(run.losses[0])


def test_crop_flip_moves_each_image_by_itself_and_pads_with_black() -> None:
    x = torch.arange(1.0, 2 * 3 * 64 + 1).view(2, 3, 8, 8).repeat(50, 1, 1, 1)
    black = torch.tensor([-1.0, -2.0, -3.0]).view(3, 1, 1)
    moved = crop_flip(x, black, torch_generator(0, "augment"))
    assert moved.shape == x.shape
    assert len({tuple(image.flatten().tolist()) for image in moved[::2]}) > 10
    for channel in range(3):
        known = set(x[:, channel].flatten().tolist()) | {float(black[channel])}
        assert set(moved[:, channel].flatten().tolist()) <= known


def test_learning_rate_falls_as_step_lr(digits: Splits) -> None:
    run, rates = training(epochs=5, step_size=2, gamma=0.1, learning_rate=0.1), []
    while not run.finished:
        run.run_epoch(digits.train, digits.validation)
        rates.append(run.optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001])


@pytest.mark.parametrize(
    ("key", "value"), [("epochs", 0), ("learning_rate", 0), ("momentum", 1), ("patience", 0)]
)
def test_impossible_schedules_are_refused(key: str, value: float) -> None:
    with pytest.raises(ValidationError, match=key):
        TrainingConfig.model_validate({key: value})


def test_streams_differ_by_seed_and_purpose_and_leave_the_global_generators_alone() -> None:
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    streams = {
        derive(seed, purpose, number)
        for seed in range(5)
        for purpose in ("a", "b")
        for number in range(5)
    }
    assert len(streams) == 50
    assert derive(0, 1) != derive(0, "1")
    assert derive(0, "a", "b") != derive(0, "ab")
    assert numpy_generator(3, "x").integers(1 << 30) == numpy_generator(3, "x").integers(1 << 30)
    torch.randn(3, generator=torch_generator(3, "x"))
    assert torch.equal(before, torch.random.get_rng_state())


def test_secret_noise_depends_on_the_whole_secret_and_is_standard_normal() -> None:
    # Six standard errors of mean and standard deviation of 200,000 draws.
    draws = secret_normal(2**200 + 5, (200_000,), "release", 3)
    assert abs(float(draws.mean())) < 6 / 200_000**0.5
    assert abs(float(draws.std()) - 1) < 6 / 400_000**0.5
    assert torch.equal(draws, secret_normal(2**200 + 5, (200_000,), "release", 3))
    for other in (5, 2**32 + 5, 2**64 + 5, 2**200 + 2**32 + 5):
        assert not torch.equal(draws, secret_normal(other, (200_000,), "release", 3))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_asking_for_a_gpu_that_is_not_there_is_an_error() -> None:
    with pytest.raises(RequestError, match=r"client\.device"):
        Compute(ComputeConfig(device="cuda"))


def test_images_are_placed_in_the_layout_and_other_values_as_they_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Vectors cross too, where a model is cut behind its last feature map."""
    compute = Compute(ComputeConfig(device="cpu", channels_last=True))
    monkeypatch.setattr(Compute, "on_gpu", property(lambda _: True))
    images = compute.move_batch(torch.zeros(2, 3, 4, 4))
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert compute.move_batch(torch.zeros(2, 512)).shape == (2, 512)
    assert compute.move_model(torch.nn.Linear(3, 2))(
        compute.move_batch(torch.zeros(2, 3))
    ).shape == (2, 2)


def test_threads_are_put_back() -> None:
    torch.set_num_threads(1)
    with Compute(ComputeConfig(device="cpu", threads=2)).use_threads():
        assert torch.get_num_threads() == 2
    assert torch.get_num_threads() == 1
