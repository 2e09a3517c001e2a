"""Partitioning rows among nodes with the partitioners of flwr-datasets."""

from __future__ import annotations

import warnings
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
    """How training rows are partitioned among nodes.

    Parameters
    ----------
    scheme : str
        ``iid``: equal shares at random. ``dirichlet``: each class in shares drawn from a
        Dirichlet distribution. ``pathological``: few classes for each node. ``shard``: few
        runs of the rows sorted by class for each node. ``linear``, ``square``,
        ``exponential``: shares at random whose sizes grow with the node's number.
    alpha : float
        ``dirichlet``: concentration; the smaller, the more the nodes differ.
    min_rows_per_node : int
        ``dirichlet``: draw again until every node has at least this many rows.
    self_balancing : bool
        ``dirichlet``: give no more to nodes that already hold more than the average.
    classes_per_node : int
        ``pathological``: number of classes of each node.
    class_assignment : str
        ``pathological``: which classes; flwr-datasets' ``class_assignment_mode``.
    shards_per_node : int
        ``shard``: number of shards of each node.
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
    """Partition rows among nodes.

    Parameters
    ----------
    labels : ndarray of int64, shape (n,)
        The class of each row.
    num_nodes : int
        Number of nodes.
    config : PartitionConfig
    seed : int
        The run's seed.

    Returns
    -------
    list of ndarray of int64
        For each node its positions in ``labels``: disjoint, non-empty, together all of them.

    Raises
    ------
    DataError
        If the scheme cannot partition these rows.
    """
    if not 0 < num_nodes <= len(labels):
        raise DataError(
            f"cannot divide {len(labels)} rows among {num_nodes} nodes: "
            f"allowed are 1 to {len(labels)} nodes"
        )
    # Not every partitioner shuffles, and the result must not depend on the order of the file.
    order = numpy_generator(seed, "partition", "order").permutation(len(labels))
    shares = _compute_shares(labels[order], num_nodes, config, seed)
    _check_covered(shares, labels[order], config)
    return [order[share] for share in shares]


def _compute_shares(labels: Rows, num_nodes: int, config: PartitionConfig, seed: int) -> list[Rows]:
    import datasets  # slow to import

    partitioner = _build_partitioner(len(labels), num_nodes, config, derive(seed, "partition"))
    columns = {"label": labels.tolist(), "row": list(range(len(labels)))}
    partitioner.dataset = datasets.Dataset.from_dict(columns)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # retries, and what _check_covered reports
            parts = [partitioner.load_partition(node) for node in range(num_nodes)]
    except (ValueError, AssertionError) as error:
        raise DataError(
            f"partition '{config.scheme}' of {len(labels)} rows among {num_nodes} nodes "
            f"is impossible: {error} Use fewer nodes, more rows or another scheme"
        ) from error
    return [np.asarray(part["row"][:], dtype=np.int64) for part in parts]


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


def _check_covered(shares: list[Rows], labels: Rows, config: PartitionConfig) -> None:
    """Refuse to leave rows out, as the pathological partitioner does with unassigned classes."""
    left_over = np.setdiff1d(np.arange(len(labels)), np.concatenate(shares))
    if len(left_over):
        classes = np.unique(labels[left_over]).tolist()
        raise DataError(
            f"partition '{config.scheme}' gives the classes {classes} to no node: use at least "
            f"{len(np.unique(labels))} nodes with class_assignment: first-deterministic, "
            "raise classes_per_node, or use scheme: shard"
        )
