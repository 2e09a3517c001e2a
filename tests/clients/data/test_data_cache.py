"""The cache: decoded once, complete or absent, shared."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from forking import fork, wait_for

from pudica.clients.data import DataConfig, DataError, cache, load
from pudica.clients.data import decoding as decoding_module

REPOSITORY = Path(__file__).parents[3]


@pytest.fixture
def config(make) -> DataConfig:
    return DataConfig(name="image-folder", path=make.image_folder())


def entries(cache_folder: Path) -> list[Path]:
    return [path for path in cache_folder.iterdir() if path.is_dir() and path.name != "index"]


def age(folder: Path, seconds: float = 60) -> None:
    """Make every file look as if it was last written a while ago."""
    then = time.time() - seconds
    for path in folder.rglob("*"):
        os.utime(path, (then, then))


def test_decoded_once(config, decodes):
    first, second = load(config, seed=0), load(config, seed=0)
    assert len(decodes) == 1
    assert first.content_hash == second.content_hash
    assert np.array_equal(first.train.images, second.train.images)


def test_images_are_memory_mapped_and_not_copied(config):
    splits = load(config, seed=0)
    assert isinstance(splits.train.images.base, np.memmap)
    assert not splits.train.images.flags.writeable
    assert splits.train.images.nbytes == 12 * 3 * 12 * 12
    assert np.shares_memory(splits.train.images, splits.test.images)


def test_changed_content_is_decoded_anew(config, decodes, make):
    before = load(config, seed=0)
    make.image("own/a/0.png", 77)
    after = load(config, seed=0)
    assert len(decodes) == 2
    assert before.content_hash != after.content_hash
    assert (after.train.images[0, 0] == 77).all()
    assert (before.train.images[0, 0] == 0).all()


def test_touched_or_moved_files_are_not_decoded_again(config, decodes, make):
    before = load(config, seed=0)
    age(make.root, 3600)
    load(config, seed=0)
    moved = make.root / "moved"
    config.path.rename(moved)
    after = load(config.model_copy(update={"path": moved}), seed=0)
    assert len(decodes) == 1
    assert before.content_hash == after.content_hash


def test_content_is_hashed_once(config, monkeypatch):
    hashed = []
    original = cache._hash_file
    monkeypatch.setattr(cache, "_hash_file", lambda file: hashed.append(file) or original(file))
    load(config, seed=0)
    load(config, seed=0)
    assert len(hashed) == 24, "just written files may still change within one time stamp"
    monkeypatch.setattr(cache, "_UNSETTLED_NS", 0)
    load(config, seed=0)
    load(config, seed=0)
    assert len(hashed) == 36


def test_each_size_and_channel_count_has_its_own_entry(config, decodes, cache_folder):
    configs = [config.model_copy(update={"image_size": size}) for size in (None, 8, 8)]
    prints = [load(one, seed=0).content_hash for one in configs]
    assert len(decodes) == len(entries(cache_folder)) == 2
    assert prints[0] != prints[1] == prints[2]


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, MemoryError])
def test_an_interrupted_decode_leaves_nothing(config, cache_folder, monkeypatch, interruption):
    def interrupted(*_) -> None:
        raise interruption

    with monkeypatch.context() as patch:
        patch.setattr(decoding_module, "to_pixels", interrupted)
        with pytest.raises(interruption):
            load(config, seed=0)
    assert entries(cache_folder) == []
    assert len(load(config, seed=0).train) == 8


def test_what_a_killed_process_left_is_removed(config, cache_folder, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(cache.shutil, "rmtree", lambda *_, **__: None)
        patch.setattr(cache.pq, "write_table", lambda *_: sys.exit())
        with pytest.raises(SystemExit):
            load(config, seed=0)
    (left,) = entries(cache_folder)
    assert (left / "images.npy").exists()
    load(config, seed=0)
    (entry,) = entries(cache_folder)
    assert ".part-" in left.name
    assert ".part-" not in entry.name


def test_a_process_waits_for_the_decode_of_another(config, decodes, monkeypatch):
    said, says = os.pipe()
    decode = cache.decode

    def slow(*arguments) -> list[str]:
        os.write(says, b"decoding")
        time.sleep(1)
        return decode(*arguments)

    def other() -> None:
        monkeypatch.setattr(cache, "decode", slow)
        os.write(says, load(config, seed=0).content_hash.encode())

    child = fork(other)
    assert os.read(said, 8) == b"decoding"
    ours = load(config, seed=0)
    assert wait_for(child) == 0
    assert decodes == []
    assert os.read(said, 100).decode() == ours.content_hash


def test_files_that_change_while_they_are_read(config, make, monkeypatch, cache_folder):
    original = cache.decode

    def slow(*arguments) -> list[str]:
        found = original(*arguments)
        make.image("own/a/0.png", 99)
        return found

    monkeypatch.setattr(cache, "decode", slow)
    with pytest.raises(DataError, match="changed while they were read"):
        load(config, seed=0)
    assert entries(cache_folder) == []


def test_the_cache_is_for_its_owner_only(config, cache_folder):
    load(config, seed=0)
    assert cache_folder.stat().st_mode & 0o777 == 0o700


def test_a_cache_folder_that_cannot_be_written(config, monkeypatch, make):
    blocked = make.image("file.png") / "cache"
    monkeypatch.setenv("PUDICA_CACHE", str(blocked))
    with pytest.raises(DataError, match=r"cannot use the cache folder .*file.png/cache") as caught:
        load(config, seed=0)
    assert "PUDICA_CACHE" in str(caught.value)


def test_a_full_disk_is_noticed_before_writing(config, monkeypatch):
    usage = type("Usage", (), {"free": 100})
    monkeypatch.setattr(decoding_module.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(DataError, match=r"the images need .* GB .*PUDICA_CACHE"):
        load(config, seed=0)


def test_a_damaged_entry_is_named(config, cache_folder):
    load(config, seed=0)
    (entry,) = entries(cache_folder)
    (entry / "images.npy").write_bytes(b"short")
    with pytest.raises(DataError, match=rf"cache entry {entry} is damaged.*Delete it"):
        load(config, seed=0)


def test_without_a_setting_the_users_cache_is_used(monkeypatch, tmp_path):
    from pudica.clients.data.source import cache_root

    monkeypatch.delenv("PUDICA_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_root() == tmp_path / "pudica"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_root() == Path.home() / ".cache/pudica"
