"""The invitation that an organiser gives to participants: its server's address and certificate."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Self

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from pudica.clients.protocol import code_fingerprint
from pudica.clients.runtime.node import Server
from pudica.models.errors import RequestError
from pudica.models.files import write_atomically

PACKAGES = ("flwr", "torch", "torchvision", "numpy")


class Invitation(BaseModel):
    """The contents of ``invitation.yaml``: not secret, but participants need it unmodified.

    Attributes
    ----------
    server : str
        ``HOST:PORT``.
    certificate : str
        Certificate of the organiser's authority, PEM.
    code : str
        Fingerprint of the organiser's Pudica code.
    versions : dict of str to str
        Versions of the organiser's packages.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    server: Server
    certificate: str
    code: str
    versions: dict[str, str]

    @classmethod
    def from_installation(cls, server: str, certificate: Path) -> Self:
        """Create an invitation from this installation."""
        return cls(
            server=server,
            certificate=certificate.read_text(),
            code=code_fingerprint(),
            versions=read_installed_versions(),
        )

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read an invitation from a file.

        Raises
        ------
        RequestError
            If the file can't be read or is not an invitation.
        """
        try:
            return cls.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
        except OSError as error:
            raise RequestError(f"can't read the invitation {path}: {error.strerror}") from error
        except (yaml.YAMLError, ValidationError, UnicodeDecodeError) as error:
            raise RequestError(
                f"{path} is no invitation; `pudica deploy init` writes invitation.yaml"
            ) from error

    def write(self, path: Path) -> None:
        """Write the invitation to a file."""
        text = yaml.safe_dump(self.model_dump(), sort_keys=False)
        write_atomically(path, text.encode())

    def find_differences(self) -> list[str]:
        """Return how this installation differs from the organiser's."""
        installed = read_installed_versions()
        differences = [
            f"{name} {installed[name]} here, {theirs} at the organiser's"
            for name, theirs in self.versions.items()
            if installed.get(name) != theirs
        ]
        if self.code != code_fingerprint():
            differences.insert(0, "another version of pudica's code than the organiser's")
        return differences


def read_installed_versions() -> dict[str, str]:
    """Return the versions of the packages that results depend on."""
    return {name: version(name) for name in PACKAGES}
