"""The zoo: published sizes, image limits, seeds, spellings, messages."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pudica.models import (
    build,
    build_for,
    canonical_name,
    describe,
    display_name,
    freeze,
    minimum_side,
    names,
    zoo,
)
from pudica.models.architectures import ImageTask
from pudica.models.errors import RequestError

# Parameters for 10 classes of 3x32x32.
PUBLISHED = {
    "lenet": 62_006,  # kuangliu/pytorch-cifar
    "resnet-18": 11_173_962,  # kuangliu/pytorch-cifar
    "vgg-11": 9_231_114,  # kuangliu/pytorch-cifar
    "vgg-13": 9_416_010,
    "vgg-16": 14_728_266,
    "vgg-19": 20_040_522,
    "resnet-20": 269_722,  # akamaster/pytorch_resnet_cifar10, option A
    "resnet-32": 464_154,
    "resnet-44": 658_586,
    "resnet-56": 853_018,
    "resnet-110": 1_727_962,
    "preresnet-20": 272_282,  # osmr/imgclsmob, preresnet20_cifar10 and so on
    "preresnet-56": 855_578,
    "preresnet-110": 1_730_522,
}
PUBLISHED_MILLIONS = {
    "alexnet": 2.47,  # bearpaw/pytorch-classification, README
    "resnext-29": 34.43,  # bearpaw/pytorch-classification, README
    "densenet-121": 6.96,  # kuangliu/pytorch-cifar, which lacks the stem's batch norm
    "googlenet": 6.16,  # kuangliu's 6.17 without the biases ahead of batch norm
}
FOR_DIGITS = (
    "softmax",
    "mlp",
    "cnn-tiny",
    "cnn-small",
    "cnn-wide",
    "cnn-separable",
    "vgg-small",
    "densenet-small",
    "resnet-8",
    "preresnet-8",
)


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def output_shape(name: str, channels: int, side: int) -> tuple[int, ...]:
    with torch.device("meta"):
        model = build(name, num_classes=7, channels=channels, image_size=side)
        return tuple(model(torch.zeros(2, channels, side, side)).shape)


@pytest.mark.parametrize("name", PUBLISHED)
def test_has_the_published_number_of_parameters(name: str) -> None:
    with torch.device("meta"):
        assert parameters(build(name, num_classes=10)) == PUBLISHED[name]


@pytest.mark.parametrize("name", PUBLISHED_MILLIONS)
def test_has_the_published_size(name: str) -> None:
    with torch.device("meta"):
        millions = parameters(build(name, num_classes=10)) / 1e6
    assert round(millions, 2) == PUBLISHED_MILLIONS[name]


@pytest.mark.parametrize("name", names())
def test_maps_every_allowed_image_to_logits(name: str) -> None:
    for channels, side in ((1, minimum_side(name)), (3, 32), (1, 224)):
        assert output_shape(name, channels, side) == (2, 7)


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("name", [name for name in names() if minimum_side(name) > 1])
def test_minimum_side_is_the_architectures_own(name: str) -> None:
    too_small = minimum_side(name) - 1
    with torch.device("meta"), pytest.raises((RuntimeError, ValueError)):
        # Not through `build`, which would refuse by itself.
        zoo._ZOO[name].make(ImageTask(2, 1, too_small))(torch.zeros(2, 1, too_small, too_small))


@pytest.mark.parametrize("name", FOR_DIGITS)
def test_small_models_have_gradients_on_grey_digits(name: str) -> None:
    model = build(name, num_classes=10, channels=1, image_size=8)
    images = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    nn.functional.cross_entropy(model(images), torch.arange(4)).backward()
    assert all(weight.grad is not None for weight in model.parameters())
    assert any(bool(weight.grad.any()) for weight in model.parameters())


@pytest.mark.parametrize("name", ["mlp", "resnet-8", "densenet-small", "googlenet"])
def test_seed_decides_the_weights(name: str) -> None:
    first, again, other = (
        torch.cat([p.detach().flatten() for p in build(name, num_classes=3, seed=s).parameters()])
        for s in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    build("lenet", num_classes=10, seed=5)
    assert torch.equal(torch.get_rng_state(), before)


def test_global_generator_has_no_influence() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        one = build("softmax", num_classes=2, image_size=8)
        torch.manual_seed(2)
        two = build("softmax", num_classes=2, image_size=8)
    for left, right in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(left, right)


def test_googlenet_returns_plain_logits_in_training() -> None:
    with torch.device("meta"):
        model = build("googlenet", num_classes=10).train()
        assert isinstance(model(torch.zeros(2, 3, 32, 32)), torch.Tensor)


@pytest.mark.parametrize(
    ("spelling", "name", "display"),
    [
        ("LeNet", "lenet", "LeNet"),
        ("AlexNet", "alexnet", "AlexNet"),
        ("VGG16", "vgg-16", "VGG16"),
        ("vgg-11", "vgg-11", "VGG11"),
        ("ResNet56", "resnet-56", "ResNet-56"),
        ("ResNet-18", "resnet-18", "ResNet-18"),
        ("PreResNet-20", "preresnet-20", "PreResNet-20"),
        ("DenseNet121", "densenet-121", "DenseNet-121"),
        ("GoogleNet", "googlenet", "GoogLeNet"),
        ("ResNeXt-29", "resnext-29", "ResNeXt-29"),
        ("se_resnet_20", "se-resnet-20", "SE-ResNet-20"),
    ],
)
def test_usual_spellings(spelling: str, name: str, display: str) -> None:
    assert canonical_name(spelling) == name
    assert display_name(spelling) == display


def test_no_two_names_are_spelt_alike() -> None:
    assert [canonical_name(zoo._squash_spelling(name)) for name in names()] == names()
    assert all(canonical_name(display_name(name)) == name for name in names())


def test_description_is_one_line_with_the_size() -> None:
    line = describe("ResNet20")
    assert line.startswith("ResNet-20: ")
    assert "He et al. 2016" in line
    assert "269,722 parameters" in line
    assert "\n" not in line


def test_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(RequestError, match=r"unknown model 'resnet-21'.*Did you mean 'resnet-\d+'"):
        build("resnet-21", num_classes=10)


def test_small_image_is_refused_with_alternatives() -> None:
    with pytest.raises(RequestError) as caught:
        build("VGG16", num_classes=10, image_size=8)
    message = str(caught.value)
    assert "needs images of at least 32x32 pixels, got 8x8" in message
    assert "data.image_size to 32 or more, or choose one of: softmax, mlp" in message
    assert ", lenet" not in message


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"image_size": 225}, "at most 224x224 pixels, got 225x225"),
        ({"image_size": 0}, "at least 1x1 pixels, got 0x0: set data.image_size to 1 or more"),
        ({"channels": 2}, "1 or 3 channels, got 2"),
        ({"num_classes": 1}, "at least 2 classes, got 1"),
    ],
)
def test_what_does_not_fit_is_refused(wrong: dict[str, int], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        build("mlp", **({"num_classes": 10} | wrong))


@pytest.mark.parametrize(
    "name",
    ["lenet", "vgg-11", "resnet-20", "preresnet-20", "se-resnet-20", "densenet-small", "googlenet"],
)
def test_a_frozen_model_is_the_same_function(name: str) -> None:
    model = build(name, num_classes=5).double()
    randomness = torch.Generator().manual_seed(0)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.1, generator=randomness)
            layer.running_var.uniform_(0.5, 2, generator=randomness)
            nn.init.uniform_(layer.weight, 0.5, 1.5, generator=randomness)
            nn.init.normal_(layer.bias, 0, 0.1, generator=randomness)
    model.eval()
    images = torch.rand(4, 3, 32, 32, dtype=torch.float64, generator=randomness).requires_grad_()
    logits = model(images)
    (gradient,) = torch.autograd.grad(logits.logsumexp(1).sum(), images)
    frozen = freeze(name, model)
    torch.testing.assert_close(frozen(images), logits, rtol=1e-9, atol=1e-9)
    (its_gradient,) = torch.autograd.grad(frozen(images).logsumexp(1).sum(), images)
    torch.testing.assert_close(its_gradient, gradient, rtol=1e-6, atol=1e-9)


def test_a_frozen_model_needs_no_batch_norm_after_convolutions() -> None:
    frozen = freeze("resnet-8", build("resnet-8", num_classes=5))
    assert not frozen.training
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in frozen.modules())
    assert not any(parameter.requires_grad for parameter in frozen.parameters())


def test_a_custom_model_is_frozen_as_it_is() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    assert freeze("custom:their.module:model", model) is model
    assert not model.training


@pytest.mark.parametrize(
    "name",
    [
        *("softmax", "mlp", "cnn-tiny", "cnn-wide", "cnn-iot", "cnn-embedding", "cnn-separable"),
        *("lenet", "alexnet", "vgg-11", "resnet-8", "resnet-18", "densenet-121", "googlenet"),
    ],
)
def test_images_need_not_be_square(name: str) -> None:
    side = max(minimum_side(name), 12)
    shape = (3, side + 4, side)
    model = build_for(name, shape, num_classes=3).eval()
    assert model(torch.rand(2, *shape)).shape == (2, 3)
    with pytest.raises(RequestError, match=r"needs images of at least|takes images of at most"):
        build_for(name, (3, 400, side), num_classes=3)
