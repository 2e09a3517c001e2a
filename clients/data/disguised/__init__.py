"""Data sets disguised on disk: written without loss, read like any other, undone with a key.

A set is a folder of parquet files (shards), each with a few thousand images as raw bytes and their
labels, and ``disguise.json``, which describes the bytes. It contains no secret except the images,
which only the key restores. Shards are written one by one and atomically, so writing can be
interrupted and resumed at any time.
"""

from pudica.clients.data.disguised.manifest import (
    MANIFEST,
    Manifest,
    copy_images,
    locate_disguised,
    read_manifest,
    scan_disguised,
)
from pudica.clients.data.disguised.restoring import restore_dataset
from pudica.clients.data.disguised.writing import DisguiseRequest, disguise_dataset

__all__ = [
    "MANIFEST",
    "DisguiseRequest",
    "Manifest",
    "copy_images",
    "disguise_dataset",
    "locate_disguised",
    "read_manifest",
    "restore_dataset",
    "scan_disguised",
]
