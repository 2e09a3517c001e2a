"""A data set split into training, validation and test."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pudica.clients.data.cache import CachedDataset, fetch_cached
from pudica.clients.data.columns import (
    encode_labels,
    keep_large_classes,
    note_similar_names,
    read_attributes,
)
from pudica.clients.data.config import DataConfig
from pudica.clients.data.decoding import LayoutRequest
from pudica.clients.data.errors import DataError
from pudica.clients.data.images import ImageSet
from pudica.clients.data.partition import PartitionConfig, partition_once
from pudica.clients.data.registry import DatasetSpec, find_source, lookup
from pudica.clients.data.source import DataLocation, data_root
from pudica.clients.data.vocabulary import (
    check_renamed,
    match_attributes_of_run,
    match_classes_of_run,
    rename,
)
from pudica.clients.shields.disguises import Key, KeyedDisguise, Span
from pudica.models.errors import RequestError
from pudica.models.randomness import numpy_generator

Rows = NDArray[np.int64]
Part = Literal["train", "validation", "test"]

MIN_ROWS = 6
"""Minimum number of rows for a 4:1:1 split."""
HASHED_AT_ONCE = 1024


@dataclass(frozen=True)
class Splits:
    """A data set and its three disjoint parts.

    Parameters
    ----------
    content_hash : str
        Hexadecimal hash of the files, the image shape and the label column.
    key : str
        Fingerprint of the disguise's key; empty if images are plain.
    attributes : list of str
        Names of the requested binary attributes.
    has_own_test : bool
        Whether the test part is the set's own test split, which can be kept from others.
    notes : list of str
        What was taken for what, left out or converted, to be shown once.
    """

    name: str
    class_names: list[str]
    num_classes: int
    shape: tuple[int, int, int]
    content_hash: str
    key: str
    train: ImageSet
    validation: ImageSet
    test: ImageSet
    attributes: list[str] = field(default_factory=list)
    has_own_test: bool = False
    notes: list[str] = field(default_factory=list)

    @cached_property
    def fingerprint(self) -> str:
        """Hexadecimal hash of the training and validation images, and the key.

        Test images are not included: participants of a competition have none.
        """
        digest = hashlib.blake2b(digest_size=16)
        for part in (self.train, self.validation):
            for start in range(0, len(part), HASHED_AT_ONCE):
                rows = part.rows[start : start + HASHED_AT_ONCE]
                digest.update(part.images[rows].tobytes())
            digest.update(part.labels.tobytes())
        return _hash_parts(digest.hexdigest(), self.shape, *self.class_names, self.key)


def load(config: DataConfig, seed: int) -> Splits:
    """Load a data set and split it; the same seed gives the same parts on every machine.

    Images are decoded on the first call and memory-mapped from then on.

    Raises DataError if the data are missing, broken, or do not fit the request.
    """
    spec = lookup(config.name, config.source)
    location = DataLocation(data_root(config.root), config.path, config.split_rules)
    source = find_source(spec, location, config.download)
    request = LayoutRequest(
        config.image_size or spec.image_size,
        config.channels or spec.channels,
        config.background,
        config.fit,
    )
    stored = fetch_cached(source, request)
    columns = stored.columns.column_names
    only = columns[0] if spec.label not in columns and len(columns) == 1 else spec.label
    label = config.label or only
    names = stored.class_names.get(label, spec.class_names.get(label))
    fewest = 1 if config.classes else 2
    labels, own_classes = encode_labels(stored, label, names, fewest)
    class_names = rename(own_classes, config.rename, "classes")
    notes = [*source.notes, *stored.notes, *note_similar_names(class_names)]
    minimum = max(config.min_per_class, 2 if config.split == "9:1" else 1)
    own = _keeps_test_split(config, stored)
    # Who holds no test images must come to the same classes as who does.
    counted = labels[: stored.train] if own else labels
    kept, labels, class_names = keep_large_classes(
        stored, labels, counted, class_names, minimum, fewest, notes
    )
    if config.classes:
        labels, class_names = match_classes_of_run(
            stored, labels, class_names, config.classes, notes
        )
    attributes, own_attributes = _read_attributes(config, spec, stored)
    check_renamed(config.rename, [*own_classes, *own_attributes], stored)
    attribute_names = rename(own_attributes, config.rename, "attributes")
    if config.attribute_names:
        attributes, attribute_names = match_attributes_of_run(
            stored, attributes, attribute_names, config.attribute_names, notes
        )
    train, test = (kept[kept < stored.train], kept[kept >= stored.train])
    # Of attributes, which are then what is learnt, everybody's are the same.
    if own and names is None and not config.classes and not config.attributes:
        _check_classes_known(labels[train], labels[test], class_names, stored)
    generator = numpy_generator(seed, "split")
    if own:
        parts_by_name = _split_own(stored, train, test, generator, config.split)
    elif config.split == "9:1":
        parts_by_name = _split_9_1(kept, labels, generator)
    else:
        parts_by_name = _split_4_1_1(stored, kept, generator)
    parts = _apply_limit(parts_by_name, config.limit)
    _, channels, height, width = stored.images.shape
    shape = (channels, height + 2 * config.margin, width + 2 * config.margin)
    key = _load_key(config, shape, seed)
    before = stored.disguised
    if before and key:
        raise DataError(
            f"shield: the images in {stored.base} are disguised already, with the key {before.key}"
        )
    disguise = KeyedDisguise(key) if key else None

    def part(name: str, mean: Tensor, std: Tensor) -> ImageSet:
        rows, classes = parts[name], len(class_names)
        return ImageSet(
            stored.images,
            rows,
            labels[rows],
            mean,
            std,
            classes,
            config.margin,
            disguise,
            before.span if before else Span(),
            attributes[rows] if attribute_names else attributes,
        )

    plain = torch.zeros(channels, 1, 1), torch.ones(channels, 1, 1)
    mean, std = _published_statistics(spec, config, channels) or plain
    if config.uses_training_statistics:
        mean, std = part("train", *plain).statistics()
    return Splits(
        name=config.name,
        class_names=class_names,
        num_classes=len(class_names),
        shape=shape,
        content_hash=_hash_parts(stored.fingerprint, stored.images.shape, label, *attribute_names),
        key=key.fingerprint if key else before.key if before else "",
        train=part("train", mean, std),
        validation=part("validation", mean, std),
        test=part("test", mean, std),
        attributes=attribute_names,
        has_own_test=own and len(parts["test"]) > 0,
        notes=notes,
    )


@lru_cache(maxsize=2)
def load_once(config: str, seed: int) -> Splits:
    """Load a data set that all nodes of a process share; ``config`` is the settings as JSON."""
    return load(DataConfig.model_validate_json(config), seed)


def select_node_images(
    data: Splits, part: Part, number: int, nodes: int, scheme: PartitionConfig | None, seed: int
) -> ImageSet:
    """Select a node's share of one part; ``number`` is the node's index.

    Training images are partitioned by the scheme (by default ``iid``), the others evenly.
    """
    images: ImageSet = getattr(data, part)
    if part != "train":
        return images.subset(np.arange(number, len(images), nodes))
    if nodes == 1:
        return images
    shares = partition_once(images.labels, nodes, scheme or PartitionConfig(), seed)
    return images.subset(shares[number])


def _read_attributes(
    config: DataConfig, spec: DatasetSpec, stored: CachedDataset
) -> tuple[Rows, list[str]]:
    """Return the attributes of all images, (N, A), and the data's own names of them."""
    if not config.attributes:
        return np.zeros((0, 0), np.int64), []
    known = {**spec.class_names, **stored.class_names}
    return read_attributes(stored, config.attributes, known, 1 if config.attribute_names else 2)


def _load_key(config: DataConfig, shape: tuple[int, int, int], seed: int) -> Key | None:
    if config.shield is None:
        return None
    if config.key is None:
        return Key.from_seed(config.shield, shape, seed)
    try:
        return Key.load_for(config.key, config.shield, shape)
    except RequestError as error:
        raise DataError(f"data.key: {error}") from error


def _hash_parts(*parts: object) -> str:
    return hashlib.blake2b("\0".join(map(str, parts)).encode(), digest_size=16).hexdigest()


def _published_statistics(
    spec: DatasetSpec, config: DataConfig, channels: int
) -> tuple[Tensor, Tensor] | None:
    """Return the published mean and standard deviation, (C, 1, 1), or None if not used."""
    known = spec.statistics
    # Statistics of a grey set hold for each of three equal channels, but not the reverse.
    fits = known is not None and len(known.mean) in (1, channels)
    wanted = config.normalize or ("dataset" if spec.normalise_by_default and fits else "none")
    if wanted != "dataset" or known is None:
        return None
    mean, std = (torch.tensor(values).expand(channels) for values in known)
    return mean.reshape(-1, 1, 1).clone(), std.reshape(-1, 1, 1).clone()


def _keeps_test_split(config: DataConfig, stored: CachedDataset) -> bool:
    if config.split in ("own", "train-test") and not stored.test:
        raise DataError(
            f"'{config.name}' has no test split of its own; allowed: split: '4:1:1' (the default)"
        )
    return config.split == "public" or (
        config.split in (None, "own", "train-test") and stored.test > 0
    )


def _split_own(
    stored: CachedDataset,
    train: Rows,
    test: Rows,
    generator: np.random.Generator,
    split: str | None,
) -> Mapping[str, Rows]:
    if split == "public":
        test = test[:0]
    if split == "train-test":
        train = generator.permutation(train)
        return {"train": train, "validation": train[:0], "test": test}
    if len(train) < 2:
        raise DataError(f"{stored.base}: {len(train)} training image cannot be divided 4:1")
    pool = generator.permutation(train)
    fifth = max(1, round(len(train) / 5))
    return {"train": pool[fifth:], "validation": pool[:fifth], "test": test}


def _split_4_1_1(
    stored: CachedDataset, rows: Rows, generator: np.random.Generator
) -> Mapping[str, Rows]:
    total = len(rows)
    if total < MIN_ROWS:
        raise DataError(f"{stored.base}: {total} images; 4:1:1 needs at least {MIN_ROWS}")
    pool, sixth = generator.permutation(rows), total // 6
    validation, test, train = np.split(pool, [sixth, 2 * sixth])
    return {"train": train, "validation": validation, "test": test}


def _split_9_1(rows: Rows, labels: Rows, generator: np.random.Generator) -> Mapping[str, Rows]:
    pool = generator.permutation(rows)
    test = []
    for label in np.unique(labels[rows]):
        own = pool[labels[pool] == label]
        test.append(own[: max(1, round(len(own) / 10))])
    chosen = generator.permutation(np.concatenate(test))
    train = pool[~np.isin(pool, chosen)]
    return {"train": train, "validation": pool[:0], "test": chosen}


def _check_classes_known(
    train: Rows, test: Rows, class_names: list[str], stored: CachedDataset
) -> None:
    """Refuse a test split with classes that do not occur in training; given the labels."""
    ours, theirs = set(train.tolist()), set(test.tolist())
    if strange := sorted(theirs - ours):
        shown = ", ".join(class_names[index] for index in strange[:10])
        raise DataError(
            f"{stored.base}: class counts differ between splits: {len(ours)} in train, "
            f"{len(theirs)} in test, of which {len(strange)} are not in train: {shown}. "
            "Use split: '4:1:1' to divide all rows anew"
        )


def _apply_limit(parts: Mapping[str, Rows], limit: int | None) -> Mapping[str, Rows]:
    """Shrink all parts in proportion so that training has at most ``limit`` rows."""
    share = min(1.0, (limit or np.inf) / len(parts["train"]))
    limited = {}
    for name, rows in parts.items():
        count = max(min(1, len(rows)), round(len(rows) * share))
        # Evenly spaced: a test split may be sorted by class.
        limited[name] = rows[np.arange(count) * len(rows) // count]
    return limited
