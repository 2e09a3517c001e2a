"""What an organiser gives to participants: where its server is, and how to know it."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Self

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from pudica.clients.node import Server
from pudica.clients.protocol import code_fingerprint
from pudica.models.errors import RequestError
from pudica.models.files import write_atomically

PACKAGES = ("flwr", "torch", "torchvision", "numpy")


class Invitation(BaseModel):
    """A file that is no secret, but must come from the organiser unchanged.

    Attributes
    ----------
    server : str
        ``HOST:PORT``.
    certificate : str
        Of the organiser's authority, PEM.
    code : str
        The fingerprint of Pudica's code as the organiser has it.
    versions : dict of str to str
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    server: Server
    certificate: str
    code: str
    versions: dict[str, str]

    @classmethod
    def of(cls, server: str, certificate: Path) -> Self:
        """Return the invitation of this installation."""
        return cls(
            server=server,
            certificate=certificate.read_text(),
            code=code_fingerprint(),
            versions=own_versions(),
        )

    @classmethod
    def read(cls, path: Path) -> Self:
        """Return the invitation in a file.

        Raises
        ------
        RequestError
            There is none.
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
        """Write the file."""
        text = yaml.safe_dump(self.model_dump(), sort_keys=False)
        write_atomically(path, text.encode())

    def differences(self) -> list[str]:
        """Return in which ways this installation is another than the organiser's."""
        own = own_versions()
        found = [
            f"{name} {own[name]} here, {theirs} at the organiser's"
            for name, theirs in self.versions.items()
            if own.get(name) != theirs
        ]
        if self.code != code_fingerprint():
            found.insert(0, "another version of pudica's code than the organiser's")
        return found


def own_versions() -> dict[str, str]:
    """Return the versions of what results depend on."""
    return {name: version(name) for name in PACKAGES}
