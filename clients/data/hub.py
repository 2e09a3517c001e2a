"""Image data sets of the Hugging Face Hub, by name; read as any parquet files once fetched."""

from __future__ import annotations

import re
from pathlib import Path

from pudica.clients.data.cache import new_folder
from pudica.clients.data.errors import DataError
from pudica.clients.data.source import cache_root
from pudica.models.files import file_lock

NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?(:\w[\w.-]*)?")
"""``owner/set``, or ``owner/set:configuration``."""


def hub_folder(name: str) -> Path:
    """Return the folder where a set of the Hub is kept, which need not be there."""
    return cache_root() / "hub" / name.replace("/", "--").replace(":", "---")


def download_hub(name: str) -> None:
    """Fetch a set from the Hub, unless it is here; a split is a file.

    Raises
    ------
    DataError
        It can't be fetched; the message says why.
    """
    folder = hub_folder(name)
    folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with file_lock(folder.with_suffix(".lock")):
        if not folder.is_dir():
            with new_folder(folder) as part:
                _write_splits(name, part)


def _write_splits(name: str, folder: Path) -> None:
    import datasets  # slow to import
    from datasets.table import embed_table_storage

    where, _, configuration = name.partition(":")
    try:
        found = datasets.load_dataset(where, configuration or None)
        for split, rows in found.items():
            # Images that are files of their own are paths until then.
            whole = rows.with_format("arrow").map(embed_table_storage, batched=True, batch_size=100)
            whole.to_parquet(folder / f"{split}.parquet")
    except Exception as error:  # of the network, the Hub, or any of its formats
        raise DataError(f"'{name}' can't be fetched from the Hugging Face Hub: {error}") from error
