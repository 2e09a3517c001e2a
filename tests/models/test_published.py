"""torchvision's models and their weights, without a network."""

from __future__ import annotations

from pathlib import Path
from urllib.error import URLError

import pytest
import torch
import torchvision

from pudica import models
from pudica.models import published
from pudica.models.cut import Cutter
from pudica.models.errors import RequestError

NAME = "torchvision:squeezenet1_1"
FILE = "squeezenet1_1-b8a52dc0.pth"


def test_a_model_of_torchvision_can_be_cut_and_put_together() -> None:
    model = models.build(NAME, num_classes=5, channels=3, image_size=64).eval()
    front, back = Cutter(model).cut("features.2")
    x = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(back(front(x)), model(x))
    assert model(x).shape == (2, 5)


def test_weights_that_lie_there_are_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    kept = torchvision.models.squeezenet1_1(weights=None).state_dict()
    torch.save(kept, folder / FILE)
    found = published.load_weights(NAME)
    assert all(torch.equal(found[name], kept[name]) for name in kept)


def test_without_a_network_it_is_said_where_the_file_would_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*_: object, **__: object) -> None:
        raise URLError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.urlopen", offline)
    with pytest.raises(RequestError, match=r"can't download https://.*put the file at .*pth, or"):
        published.load_weights(NAME)


@pytest.mark.parametrize(
    ("name", "channels", "why"),
    [
        ("torchvision:squeezenet1_0", 1, "takes colour images: set data.channels to 3"),
        ("torchvision:squeeznet1_1", 3, "unknown model of torchvision 'squeeznet1_1'. Did you"),
    ],
)
def test_what_torchvision_has_not_is_refused(name: str, channels: int, why: str) -> None:
    with pytest.raises(RequestError) as caught:
        models.build(name, num_classes=5, channels=channels, image_size=64)
    assert why in str(caught.value)


def test_the_zoo_has_no_published_weights() -> None:
    with pytest.raises(RequestError, match="torchvision has none for 'resnet-18'"):
        published.load_weights("resnet-18")
