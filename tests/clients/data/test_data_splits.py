"""Properties of the division into training, validation and test."""

from __future__ import annotations

import numpy as np
import pytest

from pudica.clients.data import DataConfig, DataError, load

PARTS = ("train", "validation", "test")


def rows(splits) -> list[set[int]]:
    return [set(getattr(splits, part).rows.tolist()) for part in PARTS]


def test_digits_are_divided_four_to_one_to_one():
    splits = load(DataConfig(), seed=0)
    assert [len(getattr(splits, part)) for part in PARTS] == [1199, 299, 299]
    assert splits.shape == (1, 8, 8)
    assert splits.num_classes == len(splits.class_names) == splits.train.num_classes == 10


@pytest.mark.parametrize("total", [6, 7, 11, 12, 13, 1797])
def test_any_number_of_rows_is_divided_without_rest(make, total, encode):
    images = [encode(0)] * total
    path = make.parquet(images=images, label=[i % 2 for i in range(total)])
    train, validation, test = rows(load(DataConfig(name="parquet", path=path), seed=1))
    assert len(validation) == len(test) == total // 6
    assert len(train | validation | test) == len(train) + len(validation) + len(test) == total


def test_same_seed_same_split_and_other_seed_other():
    first, again, other = (load(DataConfig(), seed=seed) for seed in (3, 3, 4))
    for part in PARTS:
        assert np.array_equal(getattr(first, part).rows, getattr(again, part).rows)
        assert not np.array_equal(getattr(first, part).rows, getattr(other, part).rows)
    assert first.content_hash == again.content_hash == other.content_hash


def test_own_test_split_is_kept_apart_and_in_order(make):
    splits = load(DataConfig(name="mnist", root=make.mnist(train=20, test=7)), seed=0)
    train, validation, _ = rows(splits)
    assert splits.test.rows.tolist() == list(range(20, 27))
    assert train | validation == set(range(20))
    assert (len(train), len(validation)) == (16, 4)


def test_who_has_the_public_part_alone_has_the_same_fingerprint(make):
    """By it an organiser sees that participants hold what it holds, but for the test set."""
    for folder in ("whole", "public"):
        make.parquet(f"{folder}/train.parquet", range(12))
    make.parquet("whole/test.parquet", range(12, 18))
    theirs = load(DataConfig(name="parquet", path=make.root / "whole"), seed=0)
    ours, same = (
        load(DataConfig(name="parquet", path=make.root / folder, split="public"), seed=0)
        for folder in ("public", "whole")
    )
    assert theirs.has_own_test
    assert (len(theirs.test), len(ours.test), len(same.test)) == (6, 0, 0)
    assert theirs.fingerprint == ours.fingerprint == same.fingerprint
    assert rows(theirs)[:2] == rows(ours)[:2]

    make.parquet("other/train.parquet", [*range(11), 40])
    other = load(DataConfig(name="parquet", path=make.root / "other", split="public"), seed=0)
    limited = load(DataConfig(name="parquet", path=make.root / "public", limit=3), seed=0)
    assert len({p.fingerprint for p in (ours, other, limited)}) == 3


def test_four_one_one_pools_the_own_test_split(make):
    config = DataConfig(name="mnist", root=make.mnist(train=20, test=7), split="4:1:1")
    train, validation, test = rows(load(config, seed=0))
    assert (len(train), len(validation), len(test)) == (19, 4, 4)
    assert train | validation | test == set(range(27))
    assert test != {23, 24, 25, 26}


def test_limit_scales_the_three_parts_together():
    full, limited = (load(DataConfig(limit=limit), seed=0) for limit in (None, 120))
    assert [len(getattr(limited, part)) for part in PARTS] == [120, 30, 30]
    for few, all_rows in zip(rows(limited), rows(full), strict=True):
        assert few < all_rows
    assert len(load(DataConfig(limit=10**6), seed=0).train) == len(full.train)
    assert [len(part) for part in rows(load(DataConfig(limit=1), seed=0))] == [1, 1, 1]


def test_labels_follow_their_images(make):
    splits = load(DataConfig(name="image-folder", path=make.image_folder()), seed=5)
    assert splits.class_names == ["a", "b"]
    for part in (splits.train, splits.validation, splits.test):
        images, labels = part.batch(slice(None))
        red = (images[:, 0, 0, 0] * 255).round()
        assert ((red >= 100) == labels.bool()).all()


def test_the_split_does_not_depend_on_the_label(make):
    root = make.utkface(30).parent
    gender, race = (
        load(DataConfig(name="utkface", root=root, label=label), seed=0)
        for label in ("gender", "race")
    )
    assert np.array_equal(gender.train.rows, race.train.rows)
    assert gender.content_hash != race.content_hash


def test_own_split_asked_for_where_there_is_none():
    with pytest.raises(DataError, match=r"'digits' has no test split of its own.*4:1:1"):
        load(DataConfig(split="own"), seed=0)


def test_too_few_rows(make):
    path = make.parquet(values=range(5))
    with pytest.raises(DataError, match="5 images; 4:1:1 needs at least 6"):
        load(DataConfig(name="parquet", path=path), seed=0)
