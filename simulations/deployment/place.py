"""A folder from which programs of Flower's are run: an organiser's, or a node's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pudica.models.errors import RequestError
from pudica.simulations.deployment.processes import Programs
from pudica.simulations.programs.calling import environment_of


class Place:
    """A folder with settings, and with what its programs need below ``flower``.

    Parameters
    ----------
    folder : Path
        Absolute.
    told : callable
        Is told each command of Flower's that is run.
    **environment : str
        Of its programs, beside what they all have.
    """

    PROGRAMS: tuple[str, ...] = ()
    """In the order in which they are started."""

    def __init__(self, folder: Path, told: Callable[[str], None], **environment: str) -> None:
        self.folder = folder
        self.flower = folder / "flower"
        own = {**environment_of(self.flower), **environment}
        self.programs = Programs(self.flower / "work", own, told)

    def up(self) -> None:
        """Start its programs."""
        raise NotImplementedError

    def down(self) -> list[str]:
        """End its programs; return which there were."""
        return [name for name in reversed(self.PROGRAMS) if self.programs.stop(name)]


def make_folder(folder: Path) -> Path:
    """Make a place's folder, for its owner alone; return it as an absolute path.

    Raises
    ------
    RequestError
        There is something in it, or it can't be made.
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
