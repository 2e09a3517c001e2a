"""Partitions: disjoint, covering, reproducible, and as skewed as they say."""

from __future__ import annotations

import numpy as np
import pytest

from pudica.clients.data import DataError, PartitionConfig, partition

LABELS = np.repeat(np.arange(10), 100)
SCHEMES = ("iid", "dirichlet", "pathological", "shard", "linear", "exponential", "square")


def parts(scheme: str, nodes: int = 5, seed: int = 0, labels=LABELS, **options):
    if scheme == "pathological":
        options.setdefault("classes_per_node", 4)
        options.setdefault("class_assignment", "deterministic")
        nodes = max(nodes, 7)
    return partition(labels, nodes, PartitionConfig(scheme=scheme, **options), seed)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_disjoint_and_covering(scheme):
    shares = parts(scheme)
    together = np.concatenate(shares)
    assert np.array_equal(np.sort(together), np.arange(len(LABELS)))
    assert all(len(share) for share in shares)
    assert all(share.dtype == np.int64 for share in shares)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_same_seed_same_partition_and_other_seed_other(scheme):
    first, again, other = (parts(scheme, seed=seed) for seed in (1, 1, 2))
    assert all(map(np.array_equal, first, again))
    assert not all(map(np.array_equal, first, other))


@pytest.mark.parametrize("total", [7, 30, 101, 997])
@pytest.mark.parametrize("scheme", ["iid", "shard"])
def test_no_row_is_lost_by_rounding(scheme, total):
    shares = parts(scheme, nodes=3, labels=np.arange(total) % 10)
    assert sum(map(len, shares)) == len(np.unique(np.concatenate(shares))) == total


def skew(shares) -> float:
    """Return the mean distance of the nodes' class shares from the whole's."""
    counts = np.stack([np.bincount(LABELS[share], minlength=10) for share in shares])
    return float(np.abs(counts / counts.sum(1, keepdims=True) - 0.1).sum(1).mean())


def test_dirichlet_is_more_skewed_than_iid_and_the_more_the_smaller_alpha():
    iid, mild, strong = (
        np.mean([skew(parts(seed=seed, **options)) for seed in range(5)])
        for options in (
            {"scheme": "iid"},
            {"scheme": "dirichlet", "alpha": 1.0},
            {"scheme": "dirichlet", "alpha": 0.1},
        )
    )
    assert iid < 0.3 < 2 * iid < mild < strong


def test_iid_shares_are_equal_and_linear_ones_grow():
    assert {len(share) for share in parts("iid")} == {200}
    sizes = [len(share) for share in parts("linear")]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1]


def test_pathological_nodes_hold_few_classes():
    shares = partition(LABELS, 10, PartitionConfig(scheme="pathological", classes_per_node=2), 0)
    assert all(len(np.unique(LABELS[share])) == 2 for share in shares)


def test_two_shards_hold_few_classes():
    assert all(len(np.unique(LABELS[share])) <= 4 for share in parts("shard"))


@pytest.mark.parametrize("nodes", [0, -1, 1001])
def test_impossible_numbers_of_nodes(nodes):
    with pytest.raises(DataError, match=rf"among {nodes} nodes: allowed are 1 to 1000"):
        parts("iid", nodes=nodes)


def test_classes_that_no_node_would_hold():
    config = PartitionConfig(scheme="pathological", classes_per_node=2)
    with pytest.raises(DataError, match=r"gives the classes .* to no node: use at least 10 nodes"):
        partition(LABELS, 3, config, 0)


def test_nodes_that_would_hold_nothing():
    with pytest.raises(DataError, match="'exponential' of 1000 rows among 20 nodes"):
        parts("exponential", nodes=20)


def test_more_classes_than_there_are():
    config = PartitionConfig(scheme="pathological", classes_per_node=11)
    with pytest.raises(DataError, match=r"'pathological' of 1000 rows .* is impossible"):
        partition(LABELS, 10, config, 0)


def test_dirichlet_that_cannot_give_everybody_enough():
    config = PartitionConfig(scheme="dirichlet", alpha=0.01, min_rows_per_node=190)
    with pytest.raises(DataError, match=r"'dirichlet' .* is impossible"):
        partition(LABELS, 5, config, 0)
