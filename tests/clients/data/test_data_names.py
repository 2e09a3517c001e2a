"""Names that come with data: one spelling is one class, and none harms who reads it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hostile_names import EMPTY, FORMULAS, HIDDEN, NFC, NFD
from pydantic import ValidationError

from pudica.clients.data import DataConfig, DataError, Splits, load
from pudica.clients.data.disguised import DisguiseRequest, disguise_dataset, restore_dataset
from pudica.clients.data.folders import scan_image_folder
from pudica.clients.data.parquet import scan_parquet
from pudica.clients.shields.disguises import Key, KeyedDisguise

ON_DISK = {what: name for what, name in HIDDEN.items() if "\0" not in name}
IN_ARROW = {what: name for what, name in HIDDEN.items() if name.isascii() or "\udc80" not in name}
SIGNED = ["-1", "+1", "@home", "=", *FORMULAS.values()]


def folder(path: Path, **more: object) -> Splits:
    return load(DataConfig(name="image-folder", path=path, **more), seed=0)  # type: ignore[arg-type]


def table(path: Path, **more: object) -> Splits:
    return load(DataConfig(name="parquet", path=path, **more), seed=0)  # type: ignore[arg-type]


def values_of(splits: Splits, name: str) -> list[int]:
    """Return the values that a class's images are made of, in all parts."""
    found: list[int] = []
    for part in (splits.train, splits.validation, splits.test):
        first = (part.pixels(slice(None))[:, 0, 0, 0] * 255).round().int().numpy()
        found += first[part.labels == splits.class_names.index(name)].tolist()
    return sorted(found)


def refused(load_it, *arguments: object, **more: object) -> str:
    """Return why data are refused, in a message that can be printed whatever they hold."""
    with pytest.raises(DataError) as caught:
        load_it(*arguments, **more)
    assert str(caught.value).isprintable()
    return str(caught.value)


# ------------------------------------------------------------------------------- folders


def test_folders_in_both_spellings_are_one_class_with_all_images(make) -> None:
    for start, name in ((0, NFC), (50, NFD), (100, "dog")):
        for i in range(4):
            make.image(f"own/{name}/{i}.png", start + i)
    splits = folder(make.root / "own")
    assert splits.class_names == sorted(["dog", NFC])
    assert values_of(splits, NFC) == [0, 1, 2, 3, 50, 51, 52, 53]


@pytest.mark.parametrize(("ours", "theirs"), [(NFC, NFD), (NFD, NFC)])
def test_training_and_test_may_spell_a_class_differently(make, ours: str, theirs: str) -> None:
    for start, part, name in ((0, "train", ours), (50, "test", theirs)):
        for i in range(4):
            make.image(f"own/{part}/{name}/{i}.png", start + i)
            make.image(f"own/{part}/dog/{i}.png", 100 + start + i)
    splits = folder(make.root / "own")
    assert splits.class_names == sorted(["dog", NFC])
    assert values_of(splits, NFC) == [0, 1, 2, 3, 50, 51, 52, 53]
    assert (len(splits.train) + len(splits.validation), len(splits.test)) == (8, 8)


def test_who_spells_names_differently_holds_the_same_data(make) -> None:
    """``e`` and an accent come before ``z`` on macOS, ``é`` after it elsewhere."""
    for owner, accented in (("linux", "\u00e9"), ("macos", "e\u0301")):
        for start, name in ((0, accented), (50, "z"), (100, "a")):
            for i in range(4):
                make.image(f"{owner}/{name}/{i}.png", start + i)
    linux, macos = (folder(make.root / owner) for owner in ("linux", "macos"))
    assert linux.class_names == macos.class_names == ["a", "z", "é"]
    assert linux.fingerprint == macos.fingerprint


@pytest.mark.parametrize("name", ON_DISK.values(), ids=ON_DISK)
@pytest.mark.parametrize("prefix", ["", "train/", "test/"])
def test_a_folder_with_what_is_not_seen_in_its_name_is_named(make, name: str, prefix: str) -> None:
    for part in ("train/", "test/") if prefix else ("",):
        make.image_folder(prefix=part)
    make.image(f"own/{prefix}{name}/0.png")
    message = refused(folder, make.root / "own")
    assert f"{make.root / 'own' / prefix.strip('/')}: the class folder '" in message
    assert ", U+" in message


@pytest.mark.parametrize("name", SIGNED)
def test_a_folder_may_begin_with_a_sign(make, name: str) -> None:
    if "/" in name:
        pytest.skip("no name of a folder")
    path = make.image_folder()
    for i in range(4):
        make.image(f"own/{name}/{i}.png", 200 + i)
    assert values_of(folder(path), name) == [200, 201, 202, 203]


@pytest.mark.parametrize("name", ON_DISK.values(), ids=ON_DISK)
def test_a_file_with_such_a_name_is_named_in_a_message_that_can_be_printed(make, name: str) -> None:
    if "\udc80" in name:
        pytest.skip("no name of a file that Python's encoding knows")
    path = make.image_folder()
    (path / "a" / f"{name}.png").write_bytes(b"no image")
    assert "broken image" in refused(folder, path)


# ------------------------------------------------------------------------- label columns


def test_texts_in_both_spellings_are_one_class(make) -> None:
    path = make.parquet(label=[NFC, NFD, "dog"] * 4)
    splits = table(path)
    assert splits.class_names == sorted(["dog", NFC])
    assert values_of(splits, NFC) == [0, 1, 3, 4, 6, 7, 9, 10]


def test_shards_may_spell_a_class_differently(make) -> None:
    make.parquet("hub/train-0.parquet", range(6), label=[NFC, "dog"] * 3)
    make.parquet("hub/train-1.parquet", range(50, 56), label=["dog", NFD] * 3)
    make.parquet("hub/test-0.parquet", range(100, 104), label=[NFD, "dog"] * 2)
    splits = table(make.root / "hub")
    assert splits.class_names == sorted(["dog", NFC])
    assert values_of(splits, NFC) == [0, 2, 4, 51, 53, 55, 100, 102]


def test_two_spellings_of_one_name_are_no_two_classes(make) -> None:
    assert f"every row has the label '{NFC}'" in refused(table, make.parquet(label=[NFC, NFD] * 6))


@pytest.mark.parametrize(
    "name", [*IN_ARROW.values(), *EMPTY.values(), "x" * 256], ids=[*IN_ARROW, *EMPTY, "long"]
)
def test_a_label_that_is_not_to_be_seen_is_named_by_file_row_and_column(make, name: str) -> None:
    if "\udc80" in name:
        pytest.skip("no text in Arrow")
    path = make.parquet(label=["a", "b", "b", "a", name, name, "b", "a", "a", "b", "a", "b"])
    assert f"{path}, row 4, column 'label': the class '" in refused(table, path)


def test_a_label_that_is_no_text_is_named(make) -> None:
    column = pa.array([b"a", b"b\xff"] * 6, pa.binary()).cast(pa.string(), safe=False)
    path = make.parquet(label=column)
    assert rf"{path}, row 1, column 'label': the class 'b\udcff' has half a" in refused(table, path)


@pytest.mark.parametrize("name", SIGNED)
def test_a_label_may_begin_with_a_sign(make, name: str) -> None:
    splits = table(make.parquet(label=["dog", name] * 6))
    assert values_of(splits, name) == [1, 3, 5, 7, 9, 11]


def test_many_labels_are_counted_as_before(make) -> None:
    names = [f"class {number % 97}" for number in range(300)]
    splits = table(make.parquet(values=[0] * 300, kind=names), split="4:1:1")
    rows = np.concatenate([part.rows for part in (splits.train, splits.validation, splits.test)])
    labels = np.concatenate(
        [part.labels for part in (splits.train, splits.validation, splits.test)]
    )
    assert splits.class_names == sorted(set(names))
    assert [splits.class_names[label] for label in labels] == [names[row] for row in rows]


# ------------------------------------------------------------------------ lists of classes


def listed(make, names: list[str] | None, file: str = "own.parquet") -> Path:
    features = {"label": {"_type": "ClassLabel", "names": names}}
    return make.parquet(file, features=features)


@pytest.mark.parametrize("pair", [(NFC, NFD), ("dog", "dog")])
def test_two_classes_of_one_name_are_named_by_file_column_and_places(
    make, pair: tuple[str, str]
) -> None:
    path = listed(make, ["cat", pair[0], "ant", pair[1]])
    message = refused(table, path)
    assert f"{path}, column 'label': the class '" in message
    assert "is there twice, as number 1 and number 3" in message


@pytest.mark.parametrize("name", HIDDEN.values(), ids=HIDDEN)
def test_a_list_with_what_is_not_seen_is_named_by_file_and_column(make, name: str) -> None:
    path = listed(make, ["cat", name, "ant"])
    assert f"{path}, column 'label': the class '" in refused(table, path)


def test_a_list_of_classes_is_in_one_spelling_in_all_shards(make) -> None:
    listed(make, ["cat", NFC, "-1"], "hub/train.parquet")
    listed(make, ["cat", NFD, "-1"], "hub/test.parquet")
    assert table(make.root / "hub").class_names == ["cat", NFC, "-1"]
    listed(make, None, "other.parquet")
    assert table(make.root / "other.parquet").class_names == ["0", "1", "2"]


# --------------------------------------------------------------- columns and attributes


@pytest.mark.parametrize(("stored", "wanted"), [(NFC, NFD), (NFD, NFC), (NFD, NFD)])
def test_a_column_is_found_in_either_spelling(make, stored: str, wanted: str) -> None:
    path = make.parquet(**{stored: ["a", "b"] * 6, "smiles": [True, False, True] * 4})
    assert table(path, label=wanted).class_names == ["a", "b"]
    found = table(path, label="smiles", attributes=[f"{wanted}=a", "smiles"])
    assert found.attributes == [f"{NFC}=a", "smiles"]


def test_a_value_is_found_in_either_spelling(make) -> None:
    path = make.parquet(hair=[NFC, NFD, "black"] * 4, smiles=[True, False] * 6)
    for value in (NFC, NFD):
        splits = table(path, label="smiles", attributes=[f"hair={value}"])
        assert splits.attributes == [f"hair={NFC}"]
        parts = (splits.train, splits.validation, splits.test)
        assert sum(int(part.attributes.sum()) for part in parts) == 8


def test_a_column_may_be_spelt_differently_in_each_shard(make) -> None:
    make.parquet("hub/train.parquet", range(8), **{NFC: ["a", "b"] * 4})
    make.parquet("hub/test.parquet", range(50, 54), **{NFD: ["a", "b"] * 2})
    assert values_of(table(make.root / "hub", label=NFC), "a") == [0, 2, 4, 6, 50, 52]


def test_two_columns_of_one_name_are_named(make) -> None:
    path = make.parquet(**{NFC: ["a", "b"] * 6, NFD: ["c", "d"] * 6})
    assert f"{path} has two columns called '{NFC}'" in refused(table, path, label=NFC)
    twice = pq.read_table(make.parquet("twice.parquet"))
    pq.write_table(twice.append_column("label", twice["label"]), make.root / "twice.parquet")
    assert "two columns called 'label'" in refused(table, make.root / "twice.parquet")


@pytest.mark.parametrize("name", IN_ARROW.values(), ids=IN_ARROW)
def test_a_column_that_is_used_has_a_name_that_can_be_seen(make, name: str) -> None:
    if "\udc80" in name:
        pytest.skip("no text in Arrow")
    path = make.parquet(**{name: [True, False] * 6})
    assert "the column '" in refused(table, path)  # the only one there is
    path = make.parquet(**{name: [True, False, True] * 4, "smiles": [True, False] * 6})
    assert table(path, label="smiles").num_classes == 2
    assert "the column '" in refused(table, path, label="smiles", attributes="*")
    assert refused(table, path, label="hair").startswith("unknown label column 'hair' in ")
    for settings in ({"label": name}, {"attributes": [name]}, {"attributes": f"{name}=1"}):
        with pytest.raises(ValidationError, match="U\\+"):
            DataConfig(**settings)  # type: ignore[arg-type]


# ------------------------------------------------------------------------ disguised sets


def disguised(make, source, labels: list[str]) -> Path:
    key = Key.from_seed("MAT(256)", (3, 12, 12), 0)
    out = make.root / "out"
    disguise_dataset(
        DisguiseRequest(source, "0", KeyedDisguise(key), labels, None, None), out, lambda *_: None
    )
    return out


def restored(make, out: Path) -> Path:
    key = Key.from_seed("MAT(256)", (3, 12, 12), 0)
    restore_dataset(out, KeyedDisguise(key), make.root / "back", lambda *_: None)
    return make.root / "back"


def test_disguised_folders_in_both_spellings_are_one_class(make) -> None:
    for start, name in ((0, NFC), (50, NFD), (100, "dog")):
        for i in range(4):
            make.image(f"own/{name}/{i}.png", start + i)
    out = disguised(make, scan_image_folder(make.root / "own"), [])
    assert load(DataConfig(name="disguised", path=out), seed=0).class_names == ["Zoé", "dog"]
    assert folder(restored(make, out)).class_names == ["Zoé", "dog"]


@pytest.mark.parametrize(("stored", "wanted"), [(NFC, NFD), (NFD, NFC)])
def test_a_column_is_disguised_in_either_spelling(make, stored: str, wanted: str) -> None:
    out = disguised(make, scan_parquet(make.parquet(**{stored: ["a", "b"] * 6})), [wanted])
    config = DataConfig(name="disguised", path=out, label=wanted)
    assert load(config, seed=0).class_names == ["a", "b"]


@pytest.mark.parametrize("name", IN_ARROW.values(), ids=IN_ARROW)
def test_a_set_that_came_disguised_holds_no_such_names(make, name: str) -> None:
    if "\udc80" in name:
        pytest.skip("no text in Arrow")
    source = scan_parquet(make.parquet(**{name: ["a", "b"] * 6}))
    assert "the column '" in refused(disguised, make, source, [])
    out = disguised(make, scan_image_folder(make.image_folder()), [])
    told = json.loads((out / "disguise.json").read_text())
    for change in ({"labels": [name]}, {"class_names": {"label": ["a", name]}}, {"key": name}):
        (out / "disguise.json").write_text(json.dumps(told | change))
        assert "is damaged" in refused(load, DataConfig(name="disguised", path=out), 0)
    (out / "disguise.json").write_text(json.dumps(told))
    (file,) = out.glob("*.parquet")
    stored = pq.read_table(file)
    labels = pa.array([name, *["a"] * (len(stored) - 1)])
    pq.write_table(stored.set_column(1, "label", labels), file)
    assert "row 0, column 'label'" in refused(load, DataConfig(name="disguised", path=out), 0)
    assert "is no name of a class folder" in refused(restored, make, out)
    assert not (make.root / "back").exists()
