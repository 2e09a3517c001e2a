"""Which images of a data set belong to which node."""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pudica.clients.data.images import ImageSet
from pudica.clients.data.partition import PartitionConfig, partition
from pudica.clients.data.splits import Splits

Part = Literal["train", "validation", "test"]


def select_node_images(
    data: Splits, part: Part, number: int, nodes: int, scheme: PartitionConfig | None, seed: int
) -> ImageSet:
    """Select a node's share of one part of a data set.

    Parameters
    ----------
    data : Splits
    part : {"train", "validation", "test"}
        Training images are partitioned by the scheme, the others evenly.
    number, nodes : int
        Index of the node, and number of nodes.
    scheme : PartitionConfig or None
        By default ``iid``.
    seed : int
        As of :func:`~pudica.clients.data.partition.partition`.
    """
    images: ImageSet = getattr(data, part)
    if part != "train":
        return images.subset(np.arange(number, len(images), nodes))
    if nodes == 1:
        return images
    shares = partition_once(images.labels, nodes, scheme or PartitionConfig(), seed)
    return images.subset(shares[number])


def partition_once(
    labels: NDArray[np.int64], nodes: int, scheme: PartitionConfig, seed: int
) -> list[NDArray[np.int64]]:
    """Return the result of :func:`.partition`, computed once per process."""
    return _partition_cached(labels.tobytes(), nodes, scheme, seed)


@lru_cache(maxsize=2)
def _partition_cached(
    labels: bytes, nodes: int, scheme: PartitionConfig, seed: int
) -> list[NDArray[np.int64]]:
    return partition(np.frombuffer(labels, np.int64), nodes, scheme, seed)
