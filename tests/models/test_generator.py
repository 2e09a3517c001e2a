"""The noise generator's mathematics, against autograd and PyTorch's own Adam."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from pudica.models import Compute, ComputeConfig, GeneratorTraining, NoiseGenerator
from pudica.models.randomness import torch_generator

SHAPE = (1, 6, 6)
CPU = Compute(ComputeConfig(device="cpu"))


def initial(bound: float = 1.5, seed: int = 0) -> NoiseGenerator:
    return NoiseGenerator.untrained(SHAPE, bound, torch_generator(seed, "test"))


def classifiers(count: int) -> list[nn.Module]:
    torch.manual_seed(7)
    made = [
        nn.Sequential(nn.Flatten(), nn.Linear(36, 16), nn.Tanh(), nn.Linear(16, 3))
        for _ in range(count)
    ]
    return [model.requires_grad_(False).eval() for model in made]


def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    randomness = torch_generator(1, "batch")
    x = torch.rand(8, *SHAPE, generator=randomness)
    y = torch.randint(0, 3, (8,), generator=randomness)
    return x, y, torch.randn(x.shape, generator=randomness)


def test_sigma_lies_between_zero_and_the_bound() -> None:
    noise = NoiseGenerator(
        torch.stack([torch.zeros(SHAPE), torch.linspace(-9, 9, 36).view(SHAPE)]), 1.5
    )
    sigma = noise.sigma()
    assert float(sigma.min()) >= 0
    assert float(sigma.max()) <= 1.5
    assert torch.all(sigma.flatten().diff() >= 0)


def test_noise_has_the_mean_and_the_spread_it_says() -> None:
    # 40,000 draws per element: standard errors are σ/200 and σ/283. Six of them over 72
    # comparisons give an error rate below 1e-6.
    noise = initial()
    draws = torch.randn(40_000, *SHAPE, generator=torch_generator(3, "draws"))
    released = noise(torch.zeros(1, *SHAPE), draws).detach()
    sigma = noise.sigma().detach()
    assert torch.all((released.mean(0) - noise.mu.detach()).abs() <= 6 * sigma / 200)
    assert torch.all((released.std(0) - sigma).abs() <= 6 * sigma / 283)


def test_initial_parameters_follow_the_authors_code() -> None:
    # 30,000 elements: six standard errors of a standard deviation are 6/√60,000 = 2.5 %.
    noise = NoiseGenerator.untrained((3, 100, 100), 1.0, torch_generator(0, "large"))
    assert float(noise.mu.std()) == pytest.approx(0.2, rel=0.025)
    assert float(noise.rho.std()) == pytest.approx(1.0, rel=0.025)


def test_task_gradient_is_that_of_the_loss_worked_out_by_hand() -> None:
    noise, (model,), (x, y, e) = initial(), classifiers(1), batch()
    gradient, loss = noise.task_gradient(model, x, y, e, CPU)

    noisy = noise(x, e).detach().requires_grad_()
    by_hand = cross_entropy(model(noisy), y)
    (at_input,) = torch.autograd.grad(by_hand, noisy)
    slope = (1 - torch.tanh(noise.rho.detach()) ** 2) / 2 * noise.bound

    assert float(loss) == pytest.approx(float(by_hand))
    torch.testing.assert_close(gradient[0], at_input.sum(0))
    torch.testing.assert_close(gradient[1], (at_input * e).sum(0) * slope)


def test_one_noise_map_per_batch_has_the_same_gradient_as_its_repetition() -> None:
    noise, (model,), (x, y, e) = initial(), classifiers(1), batch()
    once, _ = noise.task_gradient(model, x, y, e[:1], CPU)
    repeated, _ = noise.task_gradient(model, x, y, e[:1].expand_as(x), CPU)
    torch.testing.assert_close(once, repeated)


def test_steps_equal_adam_on_equation_two() -> None:
    weight, everyone, (x, y, e) = 5.0, classifiers(3), batch()
    training = GeneratorTraining(initial(), 0.01)
    central = initial()
    optimizer = torch.optim.Adam([central.mu, central.rho], lr=0.01)
    for _ in range(5):
        parts = [training.generator.task_gradient(m, x, y, e, CPU)[0] for m in everyone]
        training.step(weight * torch.stack(parts).mean(0))

        losses = [cross_entropy(m(central(x, e)), y) for m in everyone]
        loss = central.penalty() + weight / len(everyone) * torch.stack(losses).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.testing.assert_close(training.generator.mu, central.mu, rtol=0, atol=1e-6)
    torch.testing.assert_close(training.generator.rho, central.rho, rtol=0, atol=1e-6)


@pytest.mark.parametrize("steps_before", [0, 1, 4])
def test_a_generator_that_travels_goes_on_as_if_it_had_stayed(steps_before: int) -> None:
    gradients = torch.randn(8, 2, *SHAPE, generator=torch_generator(5, "gradients"))
    stayed = GeneratorTraining(initial(), 0.01)
    for gradient in gradients[:steps_before]:
        stayed.step(gradient)
    values, steps = stayed.pack()
    assert steps == steps_before
    travelled = GeneratorTraining.unpack(torch.from_numpy(values.copy()), steps, 1.5, 0.01)
    for gradient in gradients[steps_before:]:
        stayed.step(gradient)
        travelled.step(gradient)
    assert (stayed.pack()[0] == travelled.pack()[0]).all()


def test_more_weight_on_the_task_leaves_less_noise() -> None:
    def trained(weight: float) -> float:
        training, (model,), (x, y, e) = GeneratorTraining(initial(), 0.05), classifiers(1), batch()
        for _ in range(60):
            training.step(weight * training.generator.task_gradient(model, x, y, e, CPU)[0])
        return float(training.generator.sigma().detach().mean())

    assert trained(0.0) > trained(50.0)
