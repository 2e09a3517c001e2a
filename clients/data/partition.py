"""Partitioning rows among nodes with the partitioners of flwr-datasets."""

from __future__ import annotations

import warnings
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from pudica.clients.data.errors import DataError
from pudica.models.randomness import derive, numpy_generator

if TYPE_CHECKING:
    from flwr_datasets.partitioner import Partitioner

Rows = NDArray[np.int64]


class PartitionConfig(BaseModel):
    """How training images are partitioned among nodes.

    Attributes
    ----------
    scheme : str
        ``iid``: equal shares, at random. ``dirichlet``: of each class, shares drawn from a
        Dirichlet distribution. ``pathological``: few classes for each node. ``shard``: few runs of
        the images sorted by class. ``linear``, ``square``, ``exponential``: at random, shares of
        growing size.
    alpha : float
        ``dirichlet``: the concentration; the smaller it is, the more the nodes differ.
    min_rows_per_node : int, in images
        ``dirichlet``: it draws again until each node has at least so many images.
    self_balancing : bool
        ``dirichlet``: whether nodes that are above the average get no more images.
    classes_per_node : int, in classes
        ``pathological``: how many classes each node has.
    class_assignment : {"random", "deterministic", "first-deterministic"}
        ``pathological``: whether a node's classes are drawn, follow from its number, or only the
        first of them does.
    shards_per_node : int, in shards
        ``shard``: how many runs of the sorted images each node has.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    scheme: Literal[
        "iid", "dirichlet", "pathological", "shard", "linear", "exponential", "square"
    ] = "iid"
    alpha: float = Field(0.5, gt=0, allow_inf_nan=False)
    min_rows_per_node: int = Field(1, gt=0)
    self_balancing: bool = False
    classes_per_node: int = Field(2, gt=0)
    class_assignment: Literal["random", "deterministic", "first-deterministic"] = (
        "first-deterministic"
    )
    shards_per_node: int = Field(2, gt=0)


def partition(
    labels: NDArray[np.int64], num_nodes: int, config: PartitionConfig, seed: int
) -> list[Rows]:
    """Return each node's rows, given the class of each, (n,), and the run's seed.

    They are positions in ``labels``: disjoint, non-empty, together all of them.

    Raises DataError if the scheme cannot partition these rows.
    """
    if not 0 < num_nodes <= len(labels):
        raise DataError(
            f"cannot divide {len(labels)} rows among {num_nodes} nodes: "
            f"allowed are 1 to {len(labels)} nodes"
        )
    # Not every partitioner shuffles, and the result must not depend on the order of the file.
    order = numpy_generator(seed, "partition", "order").permutation(len(labels))
    shares = _compute_shares(labels[order], num_nodes, config, seed)
    return [order[share] for share in shares]


def partition_once(
    labels: NDArray[np.int64], nodes: int, scheme: PartitionConfig, seed: int
) -> list[Rows]:
    """Return the result of :func:`partition`, computed once per process."""
    return _partition_cached(labels.tobytes(), nodes, scheme, seed)


@lru_cache(maxsize=2)
def _partition_cached(labels: bytes, nodes: int, scheme: PartitionConfig, seed: int) -> list[Rows]:
    return partition(np.frombuffer(labels, np.int64), nodes, scheme, seed)


def _compute_shares(labels: Rows, num_nodes: int, config: PartitionConfig, seed: int) -> list[Rows]:
    import datasets  # slow to import

    partitioner = _build_partitioner(len(labels), num_nodes, config, derive(seed, "partition"))
    columns = {"label": labels.tolist(), "row": list(range(len(labels)))}
    partitioner.dataset = datasets.Dataset.from_dict(columns)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # retries, and what is reported below
            parts = [partitioner.load_partition(node) for node in range(num_nodes)]
    except (ValueError, AssertionError) as error:
        raise DataError(
            f"partition '{config.scheme}' of {len(labels)} rows among {num_nodes} nodes "
            f"is impossible: {error} Use fewer nodes, more rows or another scheme"
        ) from error
    shares = [np.asarray(part["row"][:], dtype=np.int64) for part in parts]
    # The pathological partitioner leaves out the rows of classes that it gives to nobody.
    left_over = np.setdiff1d(np.arange(len(labels)), np.concatenate(shares))
    if len(left_over):
        classes = np.unique(labels[left_over]).tolist()
        raise DataError(
            f"partition '{config.scheme}' gives the classes {classes} to no node: use at least "
            f"{len(np.unique(labels))} nodes with class_assignment: first-deterministic, "
            "raise classes_per_node, or use scheme: shard"
        )
    return shares


def _build_partitioner(
    rows: int, num_nodes: int, config: PartitionConfig, seed: int
) -> Partitioner:
    from flwr_datasets import partitioner as kinds  # slow to import

    by_label: dict[str, Any] = {"partition_by": "label", "seed": seed}
    match config.scheme:
        case "iid":
            return kinds.IidPartitioner(num_nodes)
        case "dirichlet":
            return kinds.DirichletPartitioner(
                num_nodes,
                alpha=config.alpha,
                min_partition_size=config.min_rows_per_node,
                self_balancing=config.self_balancing,
                **by_label,
            )
        case "pathological":
            return kinds.PathologicalPartitioner(
                num_nodes,
                num_classes_per_partition=config.classes_per_node,
                class_assignment_mode=config.class_assignment,
                **by_label,
            )
        case "shard":
            # Rounded up, and the last shard kept though shorter: given the number of shards
            # alone, the partitioner rounds down and drops the remaining rows.
            size = -(-rows // (num_nodes * config.shards_per_node))
            return kinds.ShardPartitioner(
                num_nodes, shard_size=size, keep_incomplete_shard=True, **by_label
            )
        case "linear":
            return kinds.LinearPartitioner(num_nodes)
        case "exponential":
            return kinds.ExponentialPartitioner(num_nodes)
        case "square":
            return kinds.SquarePartitioner(num_nodes)
