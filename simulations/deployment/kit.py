"""The participant's side: a folder with a node's key, settings and vault."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import yaml

from pudica.clients.runtime.node import NODE, NodeConfig
from pudica.clients.runtime.systems import systems as installed_systems
from pudica.models.errors import RequestError, unknown_name_error
from pudica.models.files import write_atomically
from pudica.models.naming import validate_node_name
from pudica.simulations.deployment import authority
from pudica.simulations.deployment.checking import check_server
from pudica.simulations.deployment.invitation import Invitation
from pudica.simulations.deployment.place import ProgramFolder, make_folder
from pudica.simulations.programs.calling import (
    CLIENTAPP,
    CLIENTAPP_READY,
    LOOPBACK,
    SUPERNODE,
    find_free_port,
)

SETTINGS = "node.yaml"
START_SECONDS, ANSWER_SECONDS = 120.0, 20.0
ONLINE = "SuperNode ID:"

TEMPLATE = """\
# A node of Pudica. These settings take precedence over what the organiser asks for.
name: {name}
server: {server}
certificate: ca.crt         # identifies the organiser's server
private_key: node.key       # identifies this node: keep it to yourself
vault: vault                # models, keys, predictions: what this node keeps to itself

# What it takes part in; everything else is refused: themis, split, dlmt, facemix.
systems: [{systems}]

# Where its images are. With a name, they are the node's own data set; without, the organiser's data
# set, of which there must be a copy below `root` here, and of which the node may use a share.
data: {{}}
#  name: image-folder       # or parquet, disguised, or a set of `pudica list`
#  path: /path/to/images
#  label: label             # the column of the classes

# THEMIS: the model that competes. A name of the zoo, custom:./my_models.py:callable, or FILE.pt2.
# With `weights` (safetensors) it is not trained further.
# model: resnet-20
# weights: trained.safetensors

# How images are protected, whatever the organiser asks for:
# key: own.key              # DLMT: they are disguised with this key, or not sent at all
# train: federated          # DLMT: or central
# shield: {{name: clip-gaussian, epsilon: 3}}   # split learning: at the cut, at most this ε
# releases: 1               # … how often an image's activations may leave, in all runs together
# budget: {{epsilon: 3}}      # … what all releases of an image may add up to, in all runs together
# mixing: 8                 # FaceMix: the smallest group, shuffled, with secret keys
# report: none              # accuracies on its images: none, noisy or exact
# Without these, a node takes part in none of the three, unless it trusts the organiser with them:
trust_organiser: {trust}

# device: auto              # or cpu, cuda
# threads: 1
"""


class Kit(ProgramFolder):
    """A participant's folder and its node: a SuperNode and its ClientApp.

    Parameters
    ----------
    folder : Path
    told : callable
        Called with each of Flower's commands before it runs.

    Raises
    ------
    RequestError
        If the folder is not a node's, or ``node.yaml`` is not valid.
    """

    PROGRAMS = ("supernode", "clientapp")

    def __init__(self, folder: Path, notify: Callable[[str], None] = lambda _: None) -> None:
        if not (folder / SETTINGS).is_file():
            raise RequestError(
                f"{folder} is no node's folder; make one with `pudica deploy node NAME`"
            )
        super().__init__(folder.absolute(), notify)
        self.config = NodeConfig.read(self.folder / SETTINGS)

    @classmethod
    def create(
        cls,
        folder: Path,
        name: str,
        invitation: Invitation,
        systems: str = "themis",
        trust: bool = False,
        notify: Callable[[str], None] = lambda _: None,
    ) -> Kit:
        """Create a node's folder: its key, the public half to send, and its settings.

        Raises
        ------
        RequestError
            If the folder is not empty, or name or system are not valid.
        """
        name = validate_node_name(name)
        if systems not in installed_systems():
            raise unknown_name_error("system", systems, installed_systems())
        folder = make_folder(folder)
        text = TEMPLATE.format(
            name=_format_scalar(name),
            server=invitation.server,
            systems=systems,
            trust=str(trust).lower(),
        )
        write_atomically(folder / "ca.crt", invitation.certificate.encode())
        invitation.write(folder / "invitation.yaml")
        write_atomically(folder / SETTINGS, text.encode())
        authority.create_node_key(folder / "node.key", folder / f"{name}.pub", name)
        return cls(folder, notify)

    @property
    def public_key(self) -> Path:
        """The public half of the node's key, which the organiser needs."""
        return self.folder / f"{self.config.name}.pub"

    def up(self) -> None:
        """Start the SuperNode and the ClientApp that runs its tasks.

        If one of them is not running, both are started anew, since the ClientApp is given the
        SuperNode's port.

        Raises
        ------
        RequestError
            If a certificate is not valid, others may read the key, the organiser's server refuses
            this node, or the SuperNode does not start.
        """
        authority.check_certificate(self.config.certificate)
        authority.check_secret(self.config.private_key)
        if all(map(self.programs.find_process, self.PROGRAMS)):
            self.programs.notify("the node is running already")
            return
        self.down()
        write_atomically(self._secret_file, os.urandom(32), mode=0o600)
        address = f"{LOOPBACK}:{find_free_port()}"
        isolation = (
            "--isolation",
            "process",
            "--superexec-auth-secret-file",
            str(self._secret_file),
        )
        self.programs.start(
            "supernode", [*SUPERNODE, *self.supernode_arguments(address), *isolation]
        )
        settings = json.dumps({"address": address, "secret": str(self._secret_file)})
        self.programs.start("clientapp", [*CLIENTAPP, settings])
        try:
            is_ready = partial(self._log_contains, "clientapp", CLIENTAPP_READY)
            if not self.programs.wait("clientapp", is_ready, START_SECONDS):
                raise RequestError(f"pudica-clientapp is not ready after {START_SECONDS:g} s")
            is_online = partial(self._log_contains, "supernode", ONLINE)
            online = self.programs.wait("supernode", is_online, ANSWER_SECONDS)
        except RequestError as error:
            self.down()
            check_server(self.config)  # may raise with the reason
            raise RequestError(f"{error}\n`pudica node check node.yaml` may say more") from error
        if not online:
            self.programs.notify(
                f"{self.config.server} does not answer yet; the node keeps trying until "
                "`pudica deploy down`"
            )

    @property
    def _secret_file(self) -> Path:
        """The file with the secret by which the SuperNode recognises its ClientApp."""
        return self.flower / "clientapp.secret"

    def _log_contains(self, program: str, text: str) -> bool:
        return text in self.programs.read_log(program)

    def supernode_arguments(self, address: str) -> list[str]:
        """Return the arguments of a `flower-supernode` with its runtime at this address."""
        config, (host, _, port) = self.config, address.partition(":")
        return [
            *("--root-certificates", str(config.certificate)),
            *("--auth-supernode-private-key", str(config.private_key)),
            *("--superlink", config.server),
            *("--host", host, "--port", port),
            *("--node-config", f'{NODE}="{self.folder / SETTINGS}"'),
        ]


def _format_scalar(text: str) -> str:
    """Return a text as a YAML scalar, quoted if it would be read as a number, for example."""
    written: str = yaml.safe_dump(text, allow_unicode=True, width=1000)
    return written.partition("\n")[0]
