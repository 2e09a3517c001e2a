"""A participant's side: a folder with a key, the settings of a node, and its vault."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import get_args

import yaml

from pudica.clients.node import NODE, NodeConfig, System
from pudica.models.errors import RequestError, unknown
from pudica.models.files import write_atomically
from pudica.models.naming import validate_node_name
from pudica.simulations.deployment import authority
from pudica.simulations.deployment.checking import check_server
from pudica.simulations.deployment.invitation import Invitation
from pudica.simulations.deployment.place import Place, make_folder
from pudica.simulations.programs.calling import (
    CLIENTAPP,
    CLIENTAPP_READY,
    LOOPBACK,
    SUPERNODE,
    free_port,
)

SETTINGS = "node.yaml"
START_SECONDS, ANSWER_SECONDS = 120.0, 20.0
ONLINE = "SuperNode ID:"

TEMPLATE = """\
# A node of Pudica. What is said here wins over what the organiser asks for.
name: {name}
server: {server}
certificate: ca.crt         # by which the organiser's server shows who it is
private_key: node.key       # by which this node shows who it is: keep it to yourself
vault: vault                # models, keys, predictions: what this node keeps to itself

# In what it takes part; all else is refused: themis, split, dlmt, facemix.
systems: [{systems}]

# Where its images are. With a name they are its own, and of nobody else; without, they are the
# organiser's data set, which lies below `root` here, and of which a node may take a share.
data: {{}}
#  name: image-folder       # or parquet, disguised, or a set of `pudica list`
#  path: /path/to/images
#  label: label             # the column of the classes

# THEMIS: the model that competes. A name of the zoo, custom:./my_models.py:callable, or FILE.pt2.
# With `weights` (safetensors) it is not trained any more.
# model: resnet-20
# weights: trained.safetensors

# How images are protected, whatever the organiser asks for:
# key: own.key              # DLMT: they are disguised by this key, or not at all sent
# train: federated          # DLMT: or central
# shield: {{name: clip-gaussian, epsilon: 3}}   # split learning: at the cut, at most this ε
# releases: 1               # … how often an image's activations may leave, in all runs together
# budget: {{epsilon: 3}}      # … what all releases of an image may add up to, in all runs together
# mixing: 8                 # FaceMix: the least group, shuffled, under secret keys
# report: none              # how often models are right on its images: none, noisy or exact
# Without these, a node takes part in none of the three, unless it leaves that to the organiser:
trust_organiser: {trust}

# device: auto              # or cpu, cuda
# threads: 1
"""


class Kit(Place):
    """A participant's folder.

    Parameters
    ----------
    folder : Path
    told : callable
        Is told each command of Flower's that is run.

    Raises
    ------
    RequestError
        If it is none, or ``node.yaml`` does not hold.
    """

    PROGRAMS = ("supernode", "clientapp")

    def __init__(self, folder: Path, told: Callable[[str], None] = lambda _: None) -> None:
        if not (folder / SETTINGS).is_file():
            raise RequestError(
                f"{folder} is no node's folder; make one with `pudica deploy node NAME`"
            )
        super().__init__(folder.absolute(), told)
        self.config = NodeConfig.read(self.folder / SETTINGS)

    @classmethod
    def make(
        cls,
        folder: Path,
        name: str,
        invitation: Invitation,
        systems: str = "themis",
        trust: bool = False,
        told: Callable[[str], None] = lambda _: None,
    ) -> Kit:
        """Make a node's folder: its key, the public half to send, and its settings.

        Raises
        ------
        RequestError
            There is something already.
        """
        name = validate_node_name(name)
        if systems not in get_args(System):
            raise unknown("system", systems, get_args(System))
        folder = make_folder(folder)
        text = TEMPLATE.format(
            name=_scalar(name),
            server=invitation.server,
            systems=systems,
            trust=str(trust).lower(),
        )
        write_atomically(folder / "ca.crt", invitation.certificate.encode())
        invitation.write(folder / "invitation.yaml")
        write_atomically(folder / SETTINGS, text.encode())
        authority.new_node_key(folder / "node.key", folder / f"{name}.pub", name)
        return cls(folder, told)

    @property
    def public(self) -> Path:
        """The public half of its key, which the organiser needs."""
        return self.folder / f"{self.config.name}.pub"

    def up(self) -> None:
        """Start the SuperNode, and the ClientApp that does what it is asked for.

        Where one of them is missing, both are started: the one knows the other by its port.

        Raises
        ------
        RequestError
            A certificate does not hold, the key may be read by others, the organiser's server
            refuses this node, or the SuperNode does not come up.
        """
        authority.check_certificate(self.config.certificate)
        authority.check_secret(self.config.private_key)
        if all(map(self.programs.process, self.PROGRAMS)):
            self.programs.told("the node runs already")
            return
        self.down()
        write_atomically(self._secret, os.urandom(32), mode=0o600)
        address = f"{LOOPBACK}:{free_port()}"
        apart = ("--isolation", "process", "--superexec-auth-secret-file", str(self._secret))
        self.programs.start("supernode", [*SUPERNODE, *self.arguments(address), *apart])
        known = json.dumps({"address": address, "secret": str(self._secret)})
        self.programs.start("clientapp", [*CLIENTAPP, known])
        try:
            works = partial(self._says, "clientapp", CLIENTAPP_READY)
            if not self.programs.wait("clientapp", works, START_SECONDS):
                raise RequestError(f"pudica-clientapp is not ready after {START_SECONDS:g} s")
            online = partial(self._says, "supernode", ONLINE)
            ready = self.programs.wait("supernode", online, ANSWER_SECONDS)
        except RequestError as error:
            self.down()
            check_server(self.config)  # it may say why
            raise RequestError(f"{error}\n`pudica node check node.yaml` may say more") from error
        if not ready:
            self.programs.told(
                f"{self.config.server} does not answer yet; the node goes on trying until "
                "`pudica deploy down`"
            )

    @property
    def _secret(self) -> Path:
        """By which the SuperNode knows the ClientApp."""
        return self.flower / "clientapp.secret"

    def _says(self, program: str, text: str) -> bool:
        return text in self.programs.text(program)

    def arguments(self, address: str) -> list[str]:
        """Return how `flower-supernode` is called, that is to be reached there by its ClientApp."""
        own, (host, _, port) = self.config, address.partition(":")
        return [
            *("--root-certificates", str(own.certificate)),
            *("--auth-supernode-private-key", str(own.private_key)),
            *("--superlink", own.server),
            *("--host", host, "--port", port),
            *("--node-config", f'{NODE}="{self.folder / SETTINGS}"'),
        ]


def _scalar(text: str) -> str:
    """Return a text as YAML has it, in quotes where it would be a number, say, without them."""
    written: str = yaml.safe_dump(text, allow_unicode=True, width=1000)
    return written.partition("\n")[0]
