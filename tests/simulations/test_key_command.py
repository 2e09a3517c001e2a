"""``pudica key``: keys are made once, kept to their owner, and shown by their fingerprint."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from pudica.clients.data import load_once
from pudica.clients.shields.disguises import Key
from pudica.strategies.core.recorder import Recorder
from pudica.strategies.loading import load_experiment

Command = Callable[..., Result]
NEW = ("key", "new", "--shield", "mat(256) + mmt(10)", "--shape", "3x8x4")


def test_a_new_key_is_its_owners_and_shows_its_fingerprint(pudica: Command) -> None:
    result = pudica(*NEW, "--out", "key.safetensors")
    assert result.exit_code == 0
    file = Path("key.safetensors")
    key = Key.load(file)
    assert (key.notation, key.shape) == ("MAT(256)+MMT(10)", (3, 8, 4))
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert f"fingerprint  {key.fingerprint}" in result.stdout
    assert "whole numbers from 1 to 5,110" in result.stdout
    assert "an obfuscation" in result.stdout
    assert pudica("key", "show", file).stdout == result.stdout


def test_a_seed_makes_the_same_key_and_the_system_another(pudica: Command) -> None:
    for name, options in {"a": ("--seed", 1), "b": ("--seed", 1), "c": (), "d": ()}.items():
        assert pudica(*NEW, "--out", name, *options).exit_code == 0
    a, b, c, d = (Key.load(Path(name)).fingerprint for name in "abcd")
    assert a == b
    assert len({a, c, d}) == 3


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"--shield": "MAT(0)"}, "MAX_V must be a whole number of at least 1"),
        ({"--shield": "Sharma(3)"}, "allowed: 1, 2, 4"),
        ({"--shape": "3x8"}, "--shape: '3x8' is not an image"),
        ({"--out": "no/such/folder/key"}, "can't write the key"),
    ],
)
def test_wrong_requests_make_no_file(
    changed: dict[str, str], message: str, pudica: Command
) -> None:
    wanted = {"--shield": "MAT(2)", "--shape": "3x8x4", "--out": "key"} | changed
    result = pudica("key", "new", *(word for pair in wanted.items() for word in pair))
    assert result.exit_code == 2
    assert message in result.stderr
    assert not list(Path().iterdir())


def test_a_key_that_others_may_read_is_not_shown(pudica: Command) -> None:
    pudica(*NEW, "--out", "key")
    Path("key").chmod(0o640)
    result = pudica("key", "show", "key")
    assert result.exit_code == 2
    assert "chmod 600 key" in result.stderr


def test_an_attack_undoes_a_disguise_without_its_key(pudica: Command) -> None:
    new = ("key", "new", "--shield", "MAT(256)+MMT(10)", "--shape", "1x8x8", "--out", "key")
    assert pudica(*new).exit_code == 0
    options = ("--data", "digits", "--images", 200, "--picture", "undone.png")
    result = pudica("key", "attack", "key", *options)
    assert result.exit_code == 0
    fingerprint = Key.load(Path("key")).fingerprint
    assert f"MAT(256)+MMT(10), key {fingerprint}, without it" in result.stdout
    (pair,) = [line.split() for line in result.stdout.splitlines() if "one known pair" in line]
    assert pair[3] == "200"
    assert float(pair[5]) == pytest.approx(100, abs=1)
    assert "400" not in [line.split()[1] for line in result.stdout.splitlines() if "mid" in line]
    assert "differ by at most" in result.stdout
    assert Path("undone.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("notation", "shape", "options", "message"),
    [
        ("Kiya", "1x8x8", ("--data", "digits"), "not a composition of MAT, MMT and Rise"),
        ("MAT(5)", "3x8x8", ("--data", "digits"), "images are 1x8x8, the key"),
        ("MAT(5)", "1x8x8", ("--data", "digts"), "Did you mean 'digits'"),
        ("MAT(5)", "1x8x8", ("--data", "digits", "--set", "limt=3"), "limt"),
        ("MAT(5)", "1x8x8", ("--data", "digits", "--set", "shield=MAT(5)"), "are disguised with"),
    ],
)
def test_attacks_that_cannot_be(
    notation: str, shape: str, options: tuple[str, ...], message: str, pudica: Command
) -> None:
    pudica("key", "new", "--shield", notation, "--shape", shape, "--out", "key")
    result = pudica("key", "attack", "key", *options)
    assert result.exit_code == 2
    assert message in result.stderr


@pytest.mark.parametrize("experiment", ["split-digits", "themis-digits"])
def test_systems_run_on_disguised_images_and_tell_nobody_the_key(
    experiment: str, pudica: Command
) -> None:
    pudica("key", "new", "--shield", "MAT(99)", "--shape", "1x8x8", "--out", "my.key")
    tiny = {
        "split-digits": ["split.epochs=1", "data.limit=96"],
        "themis-digits": [
            "participants=[{model: softmax}, {model: mlp}]",
            "training.epochs=1",
            "data.limit=96",
            "themis.epochs=1",
        ],
    }
    settings = ["data.shield=MAT(99)", "data.key=my.key", *tiny[experiment]]
    options = [word for setting in settings for word in ("--set", setting)]
    result = pudica("run", experiment, "--engine", "inprocess", *options)
    assert result.exit_code == 0, result.stderr
    key = Key.load(Path("my.key"))
    secret = key.tensors["0/R"].numpy()
    forms = [secret.astype(kind).tobytes() for kind in ("i8", "i4", "u1", "f4", "f8")]
    row = secret[0, 0].tolist()
    forms += [gap.join(map(str, row)).encode() for gap in (", ", ",", " ")]
    assert not any(form in result.output.encode() for form in forms)
    written = [file for file in Path("results").rglob("*") if file.is_file()]
    assert written
    for file in written:
        content = file.read_bytes()
        assert not any(form in content for form in forms), file
    keys = json.loads((Path(result.stdout.split()[-1]) / "run.json").read_text())["keys"]
    assert set(keys.values()) == {key.fingerprint}


def test_a_run_is_not_resumed_with_another_key(
    pudica: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(recorder: Recorder, task: str, **result: object) -> None:
        finish(recorder, task, **result)
        raise KeyboardInterrupt

    new = ("key", "new", "--shield", "MAT(99)", "--shape", "1x8x8", "--out", "my.key")
    pudica(*new)
    finish = Recorder.finish
    settings = ("data.shield=MAT(99)", "data.key=my.key", "split.epochs=1", "data.limit=96")
    options = [word for setting in settings for word in ("--set", setting)]
    with monkeypatch.context() as patch:
        patch.setattr(Recorder, "finish", interrupt)
        run = pudica("run", "split-digits", "--engine", "inprocess", *options)
        assert run.exit_code == 130, run.stderr
    before = Key.load(Path("my.key")).fingerprint
    Path("my.key").unlink()
    pudica(*new)
    load_once.cache_clear()  # as in a new process
    (directory,) = Path("results").iterdir()
    result = pudica("run", "--resume", directory, "--engine", "inprocess")
    assert result.exit_code == 2
    assert Key.load(Path("my.key")).fingerprint in result.stderr
    assert before in result.stderr


def test_the_key_of_a_seed_is_that_of_a_run_with_the_seed(pudica: Command) -> None:
    pudica("key", "new", "--shield", "MAT(9)", "--shape", "1x8x8", "--seed", 3, "--out", "a.key")
    experiment = load_experiment("split-digits", ["data.shield=MAT(9)", "seed=3"])
    assert experiment.load_data().key == Key.load(Path("a.key")).fingerprint


def test_a_key_for_images_with_a_margin_can_be_attacked(pudica: Command) -> None:
    pudica("key", "new", "--shield", "MAT(9)", "--shape", "1x12x12", "--out", "a.key")
    options = ("--data", "digits", "--images", 30, "--set", "margin=2")
    result = pudica("key", "attack", "a.key", *options)
    assert result.exit_code == 0, result.stderr


@pytest.mark.parametrize("picture", ["no/such/folder/a.txt", "a.jpg"])
def test_a_picture_that_is_no_png_is_refused(picture: str, pudica: Command) -> None:
    pudica("key", "new", "--shield", "MAT(9)", "--shape", "1x8x8", "--out", "a.key")
    result = pudica("key", "attack", "a.key", "--data", "digits", "--picture", picture)
    assert result.exit_code == 2
    assert "must end in .png" in result.stderr
