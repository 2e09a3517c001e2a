"""Data sets: locate them, decode them once, split them.

Examples
--------
>>> splits = load(DataConfig(name="digits"), seed=0)
>>> images, labels = splits.train.batch(slice(0, 64))
"""

from pudica.clients.data.config import DataConfig
from pudica.clients.data.errors import DataError
from pudica.clients.data.images import ImageSet
from pudica.clients.data.partition import PartitionConfig, partition, partition_once
from pudica.clients.data.registry import CatalogueEntry, catalogue, dataset_names
from pudica.clients.data.splits import Part, Splits, load, load_once, select_node_images

__all__ = [
    "CatalogueEntry",
    "DataConfig",
    "DataError",
    "ImageSet",
    "Part",
    "PartitionConfig",
    "Splits",
    "catalogue",
    "dataset_names",
    "load",
    "load_once",
    "partition",
    "partition_once",
    "select_node_images",
]
