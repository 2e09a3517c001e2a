"""Files that settings name, and files that several write at once."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from pydantic import BaseModel, ValidationError

from pudica.models.custom import ModelName
from pudica.models.files import AbsolutePath, write_atomically


class Settings(BaseModel):
    path: AbsolutePath
    model: ModelName = "mlp"


def test_paths_start_from_the_folder_of_the_settings(tmp_path: Path) -> None:
    given = {"path": "images", "model": "custom:net.py:build"}
    here = Settings.model_validate(given)
    assert here.path == Path.cwd() / "images"
    there = Settings.model_validate(given, context={"folder": tmp_path})
    assert there.path == tmp_path / "images"
    assert there.model == f"custom:{tmp_path / 'net.py'}:build"
    assert Settings.model_validate({"path": "~/images"}).path == Path.home() / "images"


def test_somebody_elses_paths_stay_as_they_are() -> None:
    given = {"path": "~root/x", "model": "custom:~root/net.py:build"}
    theirs = Settings.model_validate(given, context={"folder": None})
    assert (str(theirs.path), theirs.model) == ("~root/x", "custom:~root/net.py:build")


def test_a_home_that_is_not_there_is_named() -> None:
    with pytest.raises(ValidationError, match="~nobody-of-this-name/x: "):
        Settings(path=Path("~nobody-of-this-name/x"))


def test_who_writes_at_the_same_time_disturbs_nobody(tmp_path: Path) -> None:
    path, problems = tmp_path / "note", []

    def write(letter: bytes) -> None:
        try:
            for _ in range(200):
                write_atomically(path, 64 * letter)
                assert len(set(path.read_bytes())) == 1
                assert len(path.read_bytes()) == 64
        except (AssertionError, OSError) as error:
            problems.append(error)

    threads = [threading.Thread(target=write, args=(letter,)) for letter in (b"a", b"b", b"c")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems
    assert [file.name for file in tmp_path.iterdir()] == ["note"]
