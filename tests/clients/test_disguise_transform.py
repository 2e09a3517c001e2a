"""Disguises as torchvision transforms, in anybody's Compose."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from pudica.clients.shields import Disguise
from pudica.clients.shields.disguises import Key, KeyedDisguise
from pudica.models.errors import RequestError

SHAPE = (3, 8, 8)
NOTATION = "MAT(256)+MMT(10)"


def images(count: int = 5, shape: tuple[int, ...] = SHAPE) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, *shape), dtype=torch.uint8, generator=generator)


def key(notation: str = NOTATION, shape: tuple[int, int, int] = SHAPE) -> Key:
    return Key.from_seed(notation, shape, 0)


def test_it_computes_what_the_laboratory_computes() -> None:
    x, given = images(), key()
    wanted = KeyedDisguise(given).protect(x)
    for disguise in (Disguise(NOTATION, key=given), Disguise("mat(256) + MMT(10)", given)):
        assert torch.equal(disguise(x), wanted)
        assert torch.equal(disguise(x[0]), wanted[0])
        assert torch.equal(disguise(x.reshape(1, 5, *SHAPE))[0], wanted)
        assert disguise(x[:0]).shape == (0, *SHAPE)
    assert torch.equal(Disguise(given)(x), wanted)


@pytest.mark.parametrize("notation", [NOTATION, "Kiya", "Sharma(2, permute=4)", "Rise(9)+MMT(99)"])
def test_its_inverse_undoes_it(notation: str) -> None:
    x = images()
    disguise = Disguise(notation)
    inverse = disguise.inverse()
    with pytest.raises(RequestError, match="has no key yet"):
        inverse(x)
    assert torch.equal(v2.Compose([disguise, inverse])(x), x)
    assert torch.equal(inverse(disguise(x[2])), x[2])


def test_it_works_in_a_pipeline_and_leaves_the_rest_of_a_sample_alone() -> None:
    disguise = Disguise(NOTATION, key=key())
    low, high = disguise.span.low, disguise.span.high
    pipeline = v2.Compose(
        [v2.PILToTensor(), disguise, v2.ToDtype(torch.float32), v2.Normalize([low] * 3, [high] * 3)]
    )
    pixels = images(1)[0]
    out = pipeline(Image.fromarray(pixels.permute(1, 2, 0).numpy()))
    assert out.dtype == torch.float32
    assert float(out.abs().max()) <= 1
    boxes = tv_tensors.BoundingBoxes([[1, 1, 4, 4]], format="XYXY", canvas_size=(8, 8))  # type: ignore[call-overload]
    sample = {"image": tv_tensors.Image(pixels), "boxes": boxes, "label": torch.tensor([3])}
    seen = disguise(sample)
    assert isinstance(seen["image"], tv_tensors.Image)
    assert torch.equal(seen["image"], disguise(pixels))
    assert torch.equal(seen["boxes"], boxes)
    assert torch.equal(seen["label"], sample["label"])
    assert torch.equal(pixels, images(1)[0])


def test_a_fresh_key_is_secret_and_can_be_saved(tmp_path: Path) -> None:
    x, disguise = images(), Disguise(NOTATION)
    assert not disguise.has_key
    shown = disguise(x)
    assert not torch.equal(Disguise(NOTATION)(x), shown)
    path = tmp_path / "my.key"
    disguise.key.save(str(path))
    assert path.stat().st_mode & 0o777 == 0o600
    for again in (path, str(path)):
        assert torch.equal(Disguise(NOTATION, key=again)(x), shown)
    # Neither what is printed nor what is sent as weights holds it.
    assert disguise.key.fingerprint in repr(disguise)
    assert "tensor" not in repr(disguise)
    assert nn.Sequential(disguise, disguise.inverse()).state_dict() == {}


def test_copies_have_the_same_key() -> None:
    x, disguise = images(), Disguise(NOTATION).bind(SHAPE)
    for again in (copy.deepcopy(disguise), pickle.loads(pickle.dumps(disguise))):
        assert torch.equal(again(x), disguise(x))


class Pictures(Dataset):
    def __init__(self, transform: Any) -> None:
        self.transform = transform

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> torch.Tensor:
        shown: torch.Tensor = self.transform(images(4)[index])
        return shown


def test_workers_do_not_draw_keys_of_their_own() -> None:
    disguise = Disguise(NOTATION)
    with pytest.raises(RequestError, match=r"each worker .* call disguise.bind\(shape\)"):
        next(iter(DataLoader(Pictures(disguise), 4, num_workers=1)))
    disguise.bind(SHAPE)
    (shown,) = DataLoader(Pictures(disguise), 4, num_workers=1)
    assert torch.equal(shown, disguise(images(4)))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (images().float() / 255, r"must be torch.uint8, are torch.float32; scale floats"),
        (images(shape=(1, 8, 8)), "images are 1x8x8, the key [0-9a-f]{16} is for 3x8x8"),
        (images()[0, 0], r"takes images \(C, H, W\) or batches .* shape \(8, 8\)"),
        (Image.fromarray(np.zeros((8, 8), np.uint8)), r"got a PIL image; put .*PILToTensor\(\)"),
    ],
)
@pytest.mark.parametrize("bound", [True, False])
def test_wrong_images_are_refused(wrong: Any, message: str, bound: bool) -> None:
    disguise = Disguise(NOTATION, key=key() if bound else None)
    if not bound and "1x8x8" in message:
        disguise(images())
    with pytest.raises(RequestError, match=message):
        disguise(wrong)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("MAT(256)", key()), r"is for MAT\(256\)\+MMT\(10\), not for MAT\(256\)"),
        (("MATT(256)",), "unknown transformation 'MATT'. Did you mean 'MAT'"),
        ((NOTATION, "nowhere.key"), "there is no key nowhere.key"),
        ((NOTATION, 7), "key must be a Key, a path or None, is int"),
        ((key(), key()), "two keys"),
    ],
)
def test_wrong_arguments_are_refused(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        Disguise(*arguments)


def test_what_loses_pixels_has_no_inverse() -> None:
    with pytest.raises(RequestError, match=r"Blur\(1\) can't be undone: Blur\(1\) keeps less"):
        Disguise("Blur(1)").inverse()
    with pytest.raises(RequestError, match=r"Blur: sigma = 3 reaches 9 pixels"):
        Disguise("Blur(3)")(images())
    assert Disguise("Blur(1)").guarantee().epsilon is None


def test_another_key_does_not_undo_it() -> None:
    shown = Disguise(NOTATION)(images())
    with pytest.raises(RequestError, match="were not disguised with the key"):
        Disguise(NOTATION).bind(SHAPE).inverse()(shown)
