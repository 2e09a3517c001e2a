"""Data sets that are disguised on disk: written without loss, read as any other, undone by a key.

A set is a folder of parquet files, each with some thousand images as raw bytes and their labels,
and ``disguise.json``, which says what the bytes are. Nothing in it is secret but what the key would
undo. Files are written one after the other and are whole or not there, so writing can stop and go
on at any moment.
"""

from pudica.clients.data.disguised.manifest import MANIFEST, Manifest, read_manifest
from pudica.clients.data.disguised.reading import copy_images, disguised, locate_disguised
from pudica.clients.data.disguised.restoring import restore_dataset
from pudica.clients.data.disguised.writing import DisguiseRequest, disguise_dataset

__all__ = [
    "MANIFEST",
    "DisguiseRequest",
    "Manifest",
    "copy_images",
    "disguise_dataset",
    "disguised",
    "locate_disguised",
    "read_manifest",
    "restore_dataset",
]
