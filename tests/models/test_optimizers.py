"""Optimisers by name: they learn, and go on in another process as if nothing had been."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from pudica.models import optimizers
from pudica.models.files import load_tensors, save_tensors
from pudica.models.optimizers import WITH_MOMENTUM, OptimizerConfig

NAMES = get_args(OptimizerConfig.model_fields["name"].annotation)
CONFIGS: list[dict[str, Any]] = [
    *({"name": name, "weight_decay": 0.01} for name in NAMES),
    *({"name": name, "momentum": 0.9} for name in WITH_MOMENTUM),
]


def layers() -> nn.Module:
    """Return a model with a frozen layer between two that learn."""
    torch.manual_seed(0)
    made = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 5), nn.Linear(5, 3))
    made[2].requires_grad_(False)
    return made


def loss_of(model: nn.Module, number: int) -> torch.Tensor:
    """Return the loss on the data of a number."""
    x = torch.randn(8, 6, generator=torch.Generator().manual_seed(number))
    return (model(x) - x[:, :3]).square().mean()


def step(model: nn.Module, optimizer: torch.optim.Optimizer, number: int) -> float:
    """Take a step on the data of a number; return the loss before it."""
    optimizer.zero_grad()
    loss = loss_of(model, number)
    loss.backward()
    optimizer.step()
    return float(loss.detach())


@pytest.fixture(autouse=True)
def _global_generator_stays() -> Any:
    with torch.random.fork_rng(devices=[]):
        yield


def test_every_name_is_the_optimiser_it_says() -> None:
    for name in NAMES:
        model = layers()
        optimizer = optimizers.build(OptimizerConfig(name=name), model.parameters())
        assert type(optimizer).__name__.lower() == name
        assert sum(p.numel() for p in optimizer.param_groups[0]["params"]) == 6 * 5 + 5 + 5 * 3 + 3
    assert len(NAMES) >= 7


@pytest.mark.parametrize("settings", CONFIGS, ids=lambda s: "-".join(map(str, s.values())))
def test_three_steps_a_file_and_three_more_are_six(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    """Bit for bit, with the state in a file between two processes."""
    config = OptimizerConfig.model_validate({"learning_rate": 0.02, **settings})
    undisturbed = layers()
    optimizer = optimizers.build(config, undisturbed.parameters())
    losses = [step(undisturbed, optimizer, number) for number in range(6)]
    assert sum(float(loss_of(undisturbed, number).detach()) for number in range(6)) < sum(losses)

    stopped = layers()
    first = optimizers.build(config, stopped.parameters())
    for number in range(3):
        step(stopped, first, number)
    save_tensors(tmp_path / "weights.safetensors", stopped.state_dict(), {})
    save_tensors(tmp_path / "state.safetensors", optimizers.optimizer_state(first), {})

    resumed = layers()
    second = optimizers.build(config, resumed.parameters())
    kept = [load_tensors(tmp_path / f"{name}.safetensors") for name in ("weights", "state")]
    resumed.load_state_dict(kept[0][0])
    optimizers.load_optimizer_state(second, kept[1][0])
    assert [step(resumed, second, number) for number in range(3, 6)] == losses[3:]
    for name, value in undisturbed.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


@pytest.mark.parametrize("settings", CONFIGS[1:], ids=lambda s: "-".join(map(str, s.values())))
def test_the_state_matters(settings: dict[str, Any]) -> None:
    """Without it the test above would pass for an optimiser that keeps none."""
    config = OptimizerConfig.model_validate({"learning_rate": 0.02, **settings})
    model, again = layers(), layers()
    optimizer = optimizers.build(config, model.parameters())
    for number in range(3):
        step(model, optimizer, number)
    again.load_state_dict(model.state_dict())
    fresh = optimizers.build(config, again.parameters())
    for each, own in ((model, optimizer), (again, fresh)):
        step(each, own, 3)
    assert not torch.equal(model[0].weight, again[0].weight)


@pytest.mark.parametrize("name", NAMES)
def test_a_state_from_before_the_first_step_is_one_too(name: str) -> None:
    config = OptimizerConfig(name=name)
    model, again = layers(), layers()
    untouched = optimizers.build(config, model.parameters())
    restored = optimizers.build(config, again.parameters())
    state = {key: value.clone() for key, value in optimizers.optimizer_state(untouched).items()}
    optimizers.load_optimizer_state(restored, state)
    for each, own in ((model, untouched), (again, restored)):
        step(each, own, 0)
    assert all(
        torch.equal(one, other)
        for one, other in zip(model.parameters(), again.parameters(), strict=True)
    )


def test_where_nothing_learns_there_is_no_optimiser() -> None:
    frozen = layers().requires_grad_(False)
    assert optimizers.build(OptimizerConfig(), frozen.parameters()) is None
    assert optimizers.build(OptimizerConfig(), []) is None
    assert optimizers.optimizer_state(None) == {}
    optimizers.load_optimizer_state(None, {})


def test_the_rate_falls_every_so_many_epochs() -> None:
    config = OptimizerConfig(learning_rate=0.4, step_size=2, gamma=0.5)
    assert [config.learning_rate_at(epoch) for epoch in range(6)] == [0.4, 0.4, 0.2, 0.2, 0.1, 0.1]
    assert {OptimizerConfig(learning_rate=0.4).learning_rate_at(epoch) for epoch in range(6)} == {
        0.4
    }


def test_a_rate_that_is_set_is_the_one_of_the_next_step() -> None:
    model = layers()
    optimizer = optimizers.build(OptimizerConfig(learning_rate=0.1), model.parameters())
    before = model[0].weight.detach().clone()
    optimizers.set_learning_rate(optimizer, 0.025)
    step(model, optimizer, 0)
    torch.testing.assert_close(model[0].weight.detach(), before - 0.025 * model[0].weight.grad)


@pytest.mark.parametrize("name", sorted(set(NAMES) - set(WITH_MOMENTUM)))
def test_momentum_is_refused_where_there_is_none(name: str) -> None:
    with pytest.raises(ValidationError, match=f"'{name}' has no momentum setting; allowed with sg"):
        OptimizerConfig(name=name, momentum=0.9)


@pytest.mark.parametrize(
    ("key", "value"),
    [("learning_rate", 0), ("momentum", 1), ("step_size", 0), ("gamma", 0), ("name", "adma")],
)
def test_impossible_settings_are_refused(key: str, value: object) -> None:
    with pytest.raises(ValidationError, match=key):
        OptimizerConfig.model_validate({key: value})


@pytest.mark.parametrize("config", CONFIGS)
def test_only_a_state_that_the_optimiser_can_have_is_accepted(config: dict[str, Any]) -> None:
    wanted, model = OptimizerConfig(**config), nn.Linear(3, 2)
    optimizer = optimizers.build(wanted, model.parameters())
    assert optimizer is not None
    optimizers.validate_state(wanted, model.parameters(), optimizers.optimizer_state(optimizer))
    model(torch.ones(4, 3)).sum().backward()
    optimizer.step()
    state = optimizers.optimizer_state(optimizer)
    optimizers.validate_state(wanted, model.parameters(), state)
    others = [{**state, "0/other": torch.zeros(2)}, {**state, "7/exp_avg": torch.zeros(2)}]
    for name, value in state.items():
        others += [{k: v for k, v in state.items() if k != name}] if len(state) > 1 else []
        others += [{**state, name: value.double()}, {**state, name: torch.zeros(3, 3, 3)}]
        if name.endswith(("_sq", "square_avg", "/sum", "/step")):
            others.append({**state, name: value - 1e6})
    for other in others:
        with pytest.raises(ValueError, match="'"):
            optimizers.validate_state(wanted, model.parameters(), other)
