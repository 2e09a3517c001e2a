"""A folder from which Flower's programs run: the organiser's or a node's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pudica.models.errors import RequestError
from pudica.simulations.deployment.processes import Programs
from pudica.simulations.programs.calling import build_environment


class ProgramFolder:
    """A folder with settings, and with the files of its programs below ``flower``.

    Parameters
    ----------
    folder : Path
        Absolute path.
    notify : callable
        Called with each of Flower's commands before it runs.
    **environment : str
        Further environment variables of its programs.
    """

    PROGRAMS: tuple[str, ...] = ()
    """Names of the programs, in the order in which they are started."""

    def __init__(self, folder: Path, notify: Callable[[str], None], **environment: str) -> None:
        self.folder = folder
        self.flower = folder / "flower"
        own = {**build_environment(self.flower), **environment}
        self.programs = Programs(self.flower / "work", own, notify)

    def up(self) -> None:
        """Start the programs of this folder."""
        raise NotImplementedError

    def down(self) -> list[str]:
        """Stop the programs of this folder; return the names of those that were running."""
        return [name for name in reversed(self.PROGRAMS) if self.programs.stop(name)]


def make_folder(folder: Path) -> Path:
    """Create the folder for its owner alone; return its absolute path.

    Raises
    ------
    RequestError
        If it is not empty, or can't be created.
    """
    folder = folder.absolute()
    try:
        if folder.exists() and any(folder.iterdir()):
            raise RequestError(f"{folder} is not empty; name a new folder")
        (folder / "flower" / "work").mkdir(parents=True, mode=0o700)
        folder.chmod(0o700)
    except OSError as error:
        raise RequestError(f"can't make {folder}: {error.strerror}") from error
    return folder
