"""Cutting models in two: the halves are the whole, wrong cuts are named, costs are right."""

from __future__ import annotations

import gc
import math

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile

from pudica.models import RequestError, build
from pudica.models.cut import INPUT, OUTPUT, Cutter, count_flops, cutting_cost

FAMILIES = (
    "lenet",
    "vgg-small",
    "resnet-8",
    "preresnet-8",
    "se-resnet-20",
    "densenet-small",
    "googlenet",
)


@pytest.mark.parametrize("name", FAMILIES)
def test_front_and_back_are_the_model(name: str) -> None:
    model = build(name, num_classes=4).eval()
    images = torch.rand(2, 3, 32, 32)
    cutter = Cutter(model)
    assert len(cutter.names) >= 8
    with torch.no_grad():
        whole = model(images)
        for cut in cutter.names[:: max(1, len(cutter.names) // 6)]:
            front, back = cutter.cut(cut)
            assert torch.equal(back(front(images)), whole), cut
            assert not set(front.state_dict()) & set(back.state_dict())
            assert set(front.state_dict()) | set(back.state_dict()) == set(model.state_dict())


@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_through_the_cut_are_those_of_the_model(name: str) -> None:
    images, labels = torch.rand(4, 3, 16, 16), torch.tensor([0, 1, 2, 3])
    model = build(name, num_classes=4, image_size=16).train()
    functional.cross_entropy(model(images), labels).backward()
    wanted = {key: p.grad.clone() for key, p in model.named_parameters()}
    cutter = Cutter(model)
    for cut in cutter.names[:: max(1, len(cutter.names) // 8)]:
        model.zero_grad()
        front, back = cutter.cut(cut)
        activation = front(images)
        smashed = activation.detach().requires_grad_()
        functional.cross_entropy(back(smashed), labels).backward()
        activation.backward(smashed.grad)
        for key, p in model.named_parameters():
            torch.testing.assert_close(
                p.grad, wanted[key], rtol=1e-3, atol=1e-5, msg=f"{cut}: {key}"
            )


def test_a_block_can_be_named_and_a_branch_can_not() -> None:
    cutter = Cutter(build("resnet-8", num_classes=4))
    assert "1.1" in cutter.names
    assert "1.1.conv1" not in cutter.names
    with pytest.raises(RequestError, match=r"more than one value would cross.*allowed: 0\.0, "):
        cutter.cut("1.1.conv1")
    front, _ = cutter.cut("1")  # the last step of the last block
    assert set(front.state_dict()) == set(cutter.cut("1.2")[0].state_dict())


def test_a_cut_that_does_not_exist_is_answered_with_those_that_do() -> None:
    with pytest.raises(RequestError, match=r"cut '1\.9'.*1\.1"):
        Cutter(build("resnet-8", num_classes=4)).cut("1.9")


def test_modes_follow_the_halves() -> None:
    front, back = Cutter(build("densenet-small", num_classes=4).train()).cut("features.denseblock1")
    assert front.training
    assert not any(layer.training for layer in back.eval().modules())


class Positioned(nn.Module):
    """Adds a parameter and a buffer that belong to no layer."""

    def __init__(self) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.ones(1, 3, 8, 8))
        self.register_buffer("shift", torch.ones(1))
        self.conv, self.end = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.end(self.conv(images + self.place).relu() - self.shift)


def test_a_weight_is_on_the_side_that_reads_it() -> None:
    front, back = Cutter(Positioned()).cut("conv")
    assert set(front.state_dict()) == {"place", "conv.weight", "conv.bias"}
    assert set(back.state_dict()) == {"shift", "end.weight", "end.bias"}
    assert Cutter(Positioned()).compute_costs((3, 8, 8))[0].parameters == 3 * 64  # `images + place`


def test_no_cut_runs_between_two_uses_of_a_layer() -> None:
    layer = nn.Conv2d(3, 3, 3, padding=1)
    model = nn.Sequential(nn.BatchNorm2d(3), layer, nn.ReLU(), layer, nn.Flatten(), nn.ReLU())
    assert Cutter(model).names == ["0", "1@1", "4"]


class Scaled(nn.Module):
    """Reads one parameter at its beginning and at its end."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.one, self.other = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        scale = self.scale
        return self.other(self.one(images * scale).relu() * scale).sum((1, 2, 3))


def test_no_cut_runs_between_two_uses_of_a_parameter() -> None:
    assert Cutter(Scaled()).names == ["mul_1", "other"]


class Halves(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        one, other = images.relu().chunk(2, 1)
        return (one + other).sum((1, 2, 3))


def test_several_tensors_are_no_cut() -> None:
    assert Cutter(Halves()).names == ["relu", "add"]


def test_a_frozen_layer_stays_in_its_mode() -> None:
    model = build("vgg-small", num_classes=3).train()
    model[0][1].eval()
    front, back = Cutter(model).cut("0.5")
    assert front.training
    assert back.training
    assert not model[0][1].training
    assert model[0][0].training


class TwoInputs(nn.Module):
    def forward(self, images: torch.Tensor, more: torch.Tensor) -> torch.Tensor:
        return images + more


class Choosy(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images if images.sum() > 0 else -images


class Forgetful(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return functional.rrelu(images, training=self.training)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (TwoInputs(), "takes 2 inputs, allowed: 1"),
        (Choosy(), "depends on more than its layers"),
        (Forgetful(), "write that as a layer"),
    ],
)
def test_models_that_cannot_be_cut_say_why(model: nn.Module, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        Cutter(model)


# -------------------------------------------------------------------------- costs


def test_costs_are_those_worked_out_by_hand() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(8 * 4 * 4, 5),
    )
    conv, relu, pool, flat = Cutter(model).compute_costs((3, 8, 8), batch=10)
    assert [cost.name for cost in (conv, relu, pool, flat)] == ["0", "1", "2", "3"]
    assert (conv.shape, pool.shape, flat.shape) == ((8, 8, 8), (8, 4, 4), (128,))
    assert (conv.bytes, pool.bytes) == (8 * 8 * 8 * 4, 8 * 4 * 4 * 4)
    assert conv.parameters == flat.parameters == 3 * 9 * 8 + 8
    assert conv.share == pytest.approx(224 / (224 + 128 * 5 + 5))
    assert conv.flops == pool.flops == 2 * 27 * 8 * 64
    images, activations, positions = 10 * 3 * 64 * 4, 10 * 512 * 4, 10 * 128 * 8
    assert conv.memory == images + activations  # kept for the weights' gradient, and the result
    assert relu.memory == images + activations  # kept and sent: counted once
    assert pool.memory == images + activations + positions + 10 * 128 * 4


@pytest.mark.parametrize(("model", "side", "cut"), [("cnn-iot", 28, "3"), ("resnet-8", 32, "1.0")])
def test_memory_is_what_a_forward_pass_really_keeps(model: str, side: int, cut: str) -> None:
    built = build(model, num_classes=10, channels=1, image_size=side).train()
    cutter = Cutter(built)
    counted = {cost.name: cost.memory for cost in cutter.compute_costs((1, side, side), batch=16)}
    front, _ = cutter.cut(cut)
    images = torch.rand(16, 1, side, side)
    front(images)  # what is made once is made here
    gc.collect()  # so that no other test's garbage is freed inside
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        kept = front(images)
    grown = sum(event.self_cpu_memory_usage for event in profiler.key_averages())
    assert kept.requires_grad
    assert images.nbytes + grown == counted[cut]


def test_costs_of_vgg_at_the_papers_cut() -> None:
    cost = Cutter(build("vgg-16", num_classes=40)).compute_costs((3, 64, 64))[0]
    assert (cost.name, cost.layer, cost.shape) == ("0.0", "Conv2d", (64, 64, 64))
    assert cost.parameters == 1792
    assert cost.flops == 2 * 27 * 64 * 64 * 64


def test_the_cost_function_of_paper_004() -> None:
    expected = 3 + 0.25 - (1 - 2 / (math.exp(3) - 1))
    assert cutting_cost(3, 0.25) == pytest.approx(expected)
    assert cutting_cost(3, 0.25, (2, 4, 1)) == pytest.approx(expected + 3 + 0.75)


# --------------------------------------------------------------------- three stages


FACES = (3, 218, 178)


@pytest.mark.parametrize(
    ("first", "parameters", "gmacs", "published"),
    [
        ("maxpool", 0.05, 0.09, 0.09),
        ("layer1.0", 0.12, 0.27, 0.28),
        ("layer1.1", 0.20, 0.46, 0.46),
    ],
)
def test_the_edges_share_of_resnet_18_is_paper_003s(
    first: str, parameters: float, gmacs: float, published: float
) -> None:
    """Tables 2 and 3, which count batch norm, ReLU and pooling too."""
    model = build("torchvision:resnet18", num_classes=80, channels=3, image_size=64)
    pre, main, post = Cutter(model).cut_stages(first, "flatten")
    edge = sum(p.numel() for stage in (pre, post) for p in stage.parameters())
    assert round(edge / 1e6, 2) == parameters
    assert edge + sum(p.numel() for p in main.parameters()) == sum(
        p.numel() for p in model.parameters()
    )
    macs = (count_flops(pre, FACES) + count_flops(post, (512,))) / 2
    assert round(macs / 1e9, 2) == gmacs
    assert round((macs + other_operations(pre)) / 1e9, 2) == published
    share = macs / (count_flops(model, FACES) / 2)
    assert share <= {"maxpool": 0.065, "layer1.0": 0.19, "layer1.1": 0.31}[first]


def other_operations(pre: nn.Module) -> int:
    """Return an operation for each value of batch norm and ReLU, and for each that is pooled."""
    total = 0

    def counted(layer: nn.Module, _: object, output: torch.Tensor) -> None:
        nonlocal total
        total += output.numel() * (9 if isinstance(layer, nn.MaxPool2d) else 1)

    kinds = (nn.BatchNorm2d, nn.ReLU, nn.MaxPool2d)
    layers = [layer for layer in pre.modules() if isinstance(layer, kinds)]
    hooks = [layer.register_forward_hook(counted) for layer in layers]
    pre.eval()(torch.zeros(1, *FACES))
    for hook in hooks:
        hook.remove()
    return total


@pytest.mark.parametrize("last", ["flatten", "layer2.0", OUTPUT])
@pytest.mark.parametrize("first", [INPUT, "maxpool", "layer1.0"])
def test_three_stages_are_the_model(first: str, last: str) -> None:
    model = build("resnet-18", num_classes=4, channels=3, image_size=16).eval()
    x = torch.randn(2, 3, 16, 16)
    pre, main, post = (stage.eval() for stage in Cutter(model).cut_stages(first, last))
    torch.testing.assert_close(post(main(pre(x))), model(x))


@pytest.mark.parametrize(
    ("first", "last", "why"),
    [
        ("layer2.0", "layer1.0", "'layer2.0' must come before 'layer1.0'"),
        ("layer1.0", "layer1.0", "the stages do not meet"),
        ("layer1.0.conv1", "flatten", "more than one value would cross"),
        ("maxpool", "layer2.0.bn2", "more than one value would cross"),
        ("nowhere", "flatten", r"unknown cut 'nowhere'.* conv1 \(Conv2d\), .*; or 'input', before"),
    ],
)
def test_stages_that_do_not_meet_say_why(first: str, last: str, why: str) -> None:
    model = build("resnet-18", num_classes=4, channels=3, image_size=16)
    with pytest.raises(RequestError, match=why):
        Cutter(model).cut_stages(first, last)
