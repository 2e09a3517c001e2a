"""Data sets: found, decoded once, divided.

Examples
--------
>>> splits = load(DataConfig(name="digits"), seed=0)
>>> images, labels = splits.train.batch(slice(0, 64))
"""

from clients.data.config import DataConfig
from clients.data.errors import DataError
from clients.data.images import ImageSet
from clients.data.partition import PartitionConfig, partition
from clients.data.registry import DataEntry, catalogue, names
from clients.data.shares import Part, divided, own_images
from clients.data.splits import Splits, load, load_once

__all__ = [
    "DataConfig",
    "DataEntry",
    "DataError",
    "ImageSet",
    "Part",
    "PartitionConfig",
    "Splits",
    "catalogue",
    "divided",
    "load",
    "load_once",
    "names",
    "own_images",
    "partition",
]
