"""``pudica disguise``: from a folder of images to one that may be given away, and back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from PIL import Image

Command = Callable[..., Result]


@pytest.fixture
def photos(pudica: Command) -> Path:
    """Return a folder of images, a key for them beside it."""
    for name in ("cat", "dog"):
        (Path("photos") / name).mkdir(parents=True)
        for number in range(4):
            pixels = np.full((8, 8, 3), 30 * number, np.uint8)
            Image.fromarray(pixels).save(Path("photos") / name / f"{number}.png")
    made = pudica("key", "new", "--shield", "MAT(256)", "--shape", "3x8x8", "--out", "my.key")
    assert made.exit_code == 0
    return Path("photos")


@pytest.mark.usefixtures("photos")
def test_there_used_and_back(pudica: Command) -> None:
    there = pudica("disguise", "photos", "out", "--key", "my.key")
    assert there.exit_code == 0
    assert "8 images (8 for training) in out" in there.stdout
    assert "data.path=out" in there.stdout
    assert "an obfuscation" in there.stdout
    assert "disguising: 8/8 images" in there.stderr
    again = pudica("disguise", "photos", "out", "--key", "my.key")
    assert again.exit_code == 0
    back = pudica("disguise", "out", "back", "--key", "my.key", "--undo")
    assert back.exit_code == 0
    assert sorted(path.name for path in Path("back").iterdir()) == ["cat", "dog"]
    assert (np.asarray(Image.open("back/cat/0000003.png")) == 90).all()


@pytest.mark.usefixtures("photos")
@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("nowhere", "out", "--key", "my.key"), "there is no nowhere"),
        (("my.key", "out", "--key", "my.key"), "cannot be read as a parquet file"),
        (("photos", "out", "--key", "no.key"), "there is no key no.key"),
        (("photos", "photos", "--key", "my.key"), "photos is inside photos"),
        (("photos", "photos/out", "--key", "my.key"), "photos/out is inside photos"),
        (("photos", ".", "--key", "my.key"), "is not empty"),
        (("photos", "out", "--key", "my.key", "--undo"), "disguise.json"),
        (("photos", "out", "--key", "my.key", "--channels", "2"), "allowed: 1 (grey), 3 (colour)"),
        (("photos", "out", "--key", "my.key", "--undo", "--label", "x"), "leave other options out"),
        (("photos", "my.key/out", "--key", "my.key"), "can't write in my.key/out"),
    ],
)
def test_wrong_requests_are_explained(pudica: Command, words: tuple[str, ...], why: str) -> None:
    result = pudica("disguise", *words)
    assert result.exit_code == 2
    assert why in result.stderr
    assert not Path("out").exists()


@pytest.mark.usefixtures("photos")
def test_a_key_that_others_may_read_is_refused_with_what_mends_it(pudica: Command) -> None:
    Path("my.key").chmod(0o644)
    result = pudica("disguise", "photos", "out", "--key", "my.key")
    assert result.exit_code == 2
    assert "chmod 600 my.key" in result.stderr
