"""The organiser's side: a folder with certificates, registered nodes and runs, and its server."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import tomli_w
import yaml
from pydantic import BaseModel, ConfigDict, Field

from pudica.models.clock import timestamp
from pudica.models.errors import RequestError, unknown_name_error
from pudica.models.files import write_atomically
from pudica.models.naming import validate_node_name
from pudica.models.printable import to_nfc
from pudica.simulations.deployment import authority
from pudica.simulations.deployment.invitation import Invitation
from pudica.simulations.deployment.place import ProgramFolder, make_folder
from pudica.simulations.deployment.serverapp import ORGANISER_DIR
from pudica.simulations.deployment.vocabulary import describe_names
from pudica.simulations.programs.bundle import COMPONENTS, write_bundle
from pudica.simulations.programs.calling import (
    CONNECTION,
    GATE,
    LOOPBACK,
    SUPERLINK,
    find_free_port,
    is_healthy,
)
from pudica.simulations.programs.submission import (
    FlowerRun,
    FlowerRunFailed,
    query_flower,
    record_outcome,
)
from pudica.simulations.runner import prepare_resume
from pudica.strategies.app import new_directory
from pudica.strategies.core.experiment import Experiment
from pudica.strategies.core.registry import NodeRegistry, RegisteredNode
from pudica.strategies.loading import load_experiment, read_settings

SETTINGS = "organiser.yaml"
SERVERAPP = "pudica.simulations.deployment.serverapp:app"
START_SECONDS = 60.0
ANSWER_SECONDS, AWAY_SECONDS = 1800, 180


class OrganiserConfig(BaseModel):
    """``organiser.yaml``.

    Attributes
    ----------
    host : str
        Name or address by which participants reach this machine.
    port : int
        Port of the gate.
    superlink : int
        Port of the SuperLink, on loopback only.
    limits : dict of str to int
        See :class:`pudica.simulations.deployment.allowance.RateLimits`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    host: str = Field(pattern=r"^[^\s:/]+$")
    port: int = Field(ge=1, le=65535)
    superlink: int = Field(ge=1, le=65535)
    limits: dict[str, int] = {}


class OrganiserServer(ProgramFolder):
    """An organiser's folder and its server: a SuperLink behind a gate.

    Parameters
    ----------
    folder : Path
    told : callable
        Called with each of Flower's commands before it runs.

    Raises
    ------
    RequestError
        If the folder is not an organiser's.
    """

    PROGRAMS = ("superlink", "gate")

    def __init__(self, folder: Path, notify: Callable[[str], None] = lambda _: None) -> None:
        if not (folder / SETTINGS).is_file():
            raise RequestError(
                f"{folder.absolute()} is no organiser's folder, nor a node's: change to one, or "
                "name it with --folder; `pudica deploy init FOLDER --host HOST` makes an "
                "organiser's, `pudica deploy node NAME` a node's"
            )
        folder = folder.absolute()
        super().__init__(folder, notify, **{ORGANISER_DIR: str(folder)})
        self.config = read_settings(OrganiserConfig, folder / SETTINGS)
        self._was_open = True

    @classmethod
    def create(
        cls, folder: Path, host: str, port: int, notify: Callable[[str], None] = lambda _: None
    ) -> OrganiserServer:
        """Create an organiser's folder: an authority, a certified server, an invitation.

        Raises
        ------
        RequestError
            If the folder is not empty.
        """
        folder = make_folder(folder)
        settings = OrganiserConfig(host=host, port=port, superlink=find_free_port())
        ca = folder / "ca.crt", folder / "ca.key"
        authority.create_authority(*ca)
        authority.create_server_certificate(folder / "server.crt", folder / "server.key", host, *ca)
        text = yaml.safe_dump(settings.model_dump(), sort_keys=False)
        write_atomically(folder / SETTINGS, text.encode())
        made = cls(folder, notify)
        made._write_invitation()
        return made

    def _write_invitation(self) -> None:
        """Write the invitation if it is missing or outdated."""
        path = self.folder / "invitation.yaml"
        invitation = Invitation.from_installation(
            f"{self.config.host}:{self.config.port}", self.folder / "ca.crt"
        )
        if not path.is_file():
            invitation.write(path)
        elif Invitation.read(path) != invitation:
            invitation.write(path)
            self.programs.notify(
                f"{path} has changed (host, port, versions or code): give it to all participants "
                "again; `server` in their node.yaml must match it"
            )

    @property
    def nodes(self) -> list[RegisteredNode]:
        """The registered nodes, in order of registration."""
        return NodeRegistry(self.folder).nodes()

    # ------------------------------------------------------------------------- programs

    def up(self) -> None:
        """Start the SuperLink and the gate, or whichever of them is not running.

        Raises
        ------
        RequestError
            If a port is taken, a certificate is not valid, or they do not start.
        """
        authority.check_certificate(self.folder / "server.crt")
        authority.check_secret(self.folder / "server.key")
        self._write_invitation()
        self._write_connection()
        missing = [name for name in self.PROGRAMS if self.programs.find_process(name) is None]
        if not missing:
            self.programs.notify("server and gate are running already")
        try:
            for name in missing:
                self._start(name)
        except RequestError:
            for name in reversed(missing):
                self.programs.stop(name)
            raise

    def _start(self, name: str) -> None:
        """Start one of the programs, and wait until it is healthy."""
        arguments, port = {
            "superlink": ([*SUPERLINK, *self.superlink_arguments()], self.config.superlink),
            "gate": ([*GATE, json.dumps(self._gate_settings())], self.config.port),
        }[name]
        self.programs.start(name, arguments)
        self._wait_until_healthy(name, port)

    def superlink_arguments(self) -> list[str]:
        """Return the arguments of `flower-superlink`."""
        certificates = {
            "--ssl-ca-certfile": "ca.crt",
            "--ssl-certfile": "server.crt",
            "--ssl-keyfile": "server.key",
        }
        options = [
            word for key, file in certificates.items() for word in (key, self._path_of(file))
        ]
        return [
            *options,
            *("--enable-supernode-auth", "--disable-runtime-dependency-installation"),
            *("--host", LOOPBACK, "--port", str(self.config.superlink)),
            *("--database", str(self.flower / "state.db")),
        ]

    def is_up(self) -> bool:
        """Return whether SuperLink and gate are running and healthy."""
        ports = {"superlink": self.config.superlink, "gate": self.config.port}
        return all(
            self.programs.find_process(name) is not None
            and is_healthy(port, self.folder / "ca.crt")
            for name, port in ports.items()
        )

    def _wait_until_healthy(self, name: str, port: int) -> None:
        try:
            answers = partial(is_healthy, port, self.folder / "ca.crt")
            if not self.programs.wait(name, answers, START_SECONDS):
                raise RequestError(f"{name} did not answer within {START_SECONDS:g} s")
        except RequestError as error:
            taken = "address already in use" in str(error).lower()
            hint = f"port {port} is taken: change it in {SETTINGS}\n" if taken else ""
            raise RequestError(f"{name} did not start: {hint}{error}") from error

    def _gate_settings(self) -> dict[str, Any]:
        local = self.config.host in ("localhost", LOOPBACK)
        return {
            "folder": str(self.folder),
            "host": LOOPBACK if local else "0.0.0.0",
            "port": self.config.port,
            "superlink": self.config.superlink,
            "limits": self.config.limits,
        }

    def _path_of(self, file: str) -> str:
        return str(self.folder / file)

    def _write_connection(self) -> None:
        """Write the connection to the SuperLink for Flower's commands."""
        connection = {
            "address": f"{LOOPBACK}:{self.config.superlink}",
            "root-certificates": self._path_of("ca.crt"),
        }
        settings = {"superlink": {"default": CONNECTION, CONNECTION: connection}}
        write_atomically(self.flower / "config.toml", tomli_w.dumps(settings).encode())

    def _query_flower(self, *arguments: str) -> dict[str, Any]:
        """Run one of Flower's commands and return its JSON."""
        log = self.programs.log_file("flwr")
        answer = query_flower(self.programs.launch, log, *arguments)
        if not answer.get("success"):
            why = answer.get("error-message") or self.programs.read_log_tail("flwr")
            raise RequestError(f"flwr {' '.join(arguments)}: {why}")
        return answer

    # --------------------------------------------------------------------------- nodes

    def register(self, public: Path, name: str) -> RegisteredNode:
        """Register a node, so that it can take part from now on.

        Raises
        ------
        RequestError
            If the key is not a public key, key or name are registered already, or the server is
            not up.
        """
        name = validate_node_name(name)
        fingerprint = authority.compute_fingerprint(public)
        for known in self.nodes:
            if known.name == name:
                raise RequestError(f"a node '{name}' is registered already; choose another --name")
            if known.fingerprint == fingerprint:
                raise RequestError(f"this key is registered already, as '{known.name}'")
        self._require_up()
        try:
            made = self._query_flower("supernode", "register", str(public.absolute()), CONNECTION)
        except RequestError as error:
            if "already in use" not in str(error):
                raise
            raise RequestError(
                f"{public}: Flower knows this key already, and accepts no key twice: it was "
                "removed, or its registration was interrupted. The participant makes a new one: "
                "`pudica deploy node` in a new folder, then node.key and the .pub file into the "
                "old one"
            ) from error
        entry = RegisteredNode(name, int(made["node-id"]), fingerprint, timestamp())
        self._write_registry([*self.nodes, entry])
        return entry

    def remove(self, name: str) -> RegisteredNode:
        """Remove a node, so that it can no longer take part; its submissions stay.

        Raises
        ------
        RequestError
            If no node of this name is registered, or the server is not up.
        """
        node = next((entry for entry in self.nodes if entry.name == to_nfc(name)), None)
        if node is None:
            raise unknown_name_error("node", name, [entry.name for entry in self.nodes])
        self._require_up()
        # First the gate's list: whatever Flower does, the node is out.
        self._write_registry([entry for entry in self.nodes if entry.name != name])
        try:
            self._query_flower("supernode", "unregister", str(node.node), CONNECTION)
        except RequestError as error:
            raise RequestError(
                f"'{name}' is refused from now on, but Flower keeps node {node.node} on its list: "
                f"{error}"
            ) from error
        return node

    def _write_registry(self, entries: list[RegisteredNode]) -> None:
        rows = [entry._asdict() for entry in entries]
        write_atomically(NodeRegistry(self.folder).path, json.dumps(rows, indent=2).encode())

    def query_node_statuses(self) -> dict[str, str]:
        """Return the SuperLink's status of each registered node, by name."""
        statuses = {
            int(node["node-id"]): str(node["status"])
            for node in self._query_flower("supernode", "list", CONNECTION)["nodes"]
        }
        return {entry.name: statuses.get(entry.node, "unknown") for entry in self.nodes}

    def _require_up(self) -> None:
        if not self.is_up():
            raise RequestError("the server is not up; `pudica deploy up`")

    # ---------------------------------------------------------------------------- runs

    def prepare(
        self, source: str | None, overrides: list[str], resume: Path | None
    ) -> tuple[Experiment, Path]:
        """Return the experiment adapted to the registered nodes, and its directory.

        ``notify`` is called with the settings that the deployment changes.

        Raises
        ------
        RequestError
            If no node is registered, or the experiment is not valid.
        """
        self._require_up()
        names = [entry.name for entry in self.nodes]
        if not names:
            raise RequestError("no node is registered; `pudica deploy register PUBLIC_KEY`")
        if resume:
            experiment, directory = prepare_resume(source, overrides, resume)
            if not directory.is_relative_to(self.folder):
                raise RequestError(f"--resume: {resume} is no run of {self.folder}")
            return experiment, directory
        if source is None:
            raise RequestError("name an experiment: pudica deploy run NAME")
        settings = load_experiment(source, []).deployed(names)
        given = {override.partition("=")[0] for override in overrides}
        settings = [s for s in settings if s.partition("=")[0] not in given]
        patience = {"client.timeout": ANSWER_SECONDS, "client.patience": AWAY_SECONDS}
        settings += [f"{key}={value}" for key, value in patience.items() if key not in given]
        experiment = load_experiment(source, [*settings, *overrides])
        _check_cases(experiment, settings)
        data = experiment.check()
        self.programs.notify("set for a deployment: " + ", ".join(settings))
        for remark in (*describe_names(data), *experiment.remarks(data)):
            self.programs.notify(remark)
        return experiment, new_directory(self.folder / "results", experiment.name)

    def run(self, experiment: Experiment, directory: Path) -> None:
        """Run an experiment with the registered nodes.

        Raises
        ------
        FlowerRunFailed
            If it did not complete.
        """
        directory.mkdir(parents=True, exist_ok=True)
        file = self.flower / "experiments" / f"{directory.name}.yaml"
        file.parent.mkdir(exist_ok=True)
        write_atomically(file, experiment.to_yaml().encode())
        # All nodes receive this, so it only contains paths relative to this folder.
        config = {
            "experiment": str(file.relative_to(self.folder)),
            "out": str(directory.relative_to(self.folder)),
            "set": "",
            "vault": "",
            "engine": "deployment",
        }
        app = self.flower / "app"
        write_bundle(app, config, {**COMPONENTS, "serverapp": SERVERAPP})
        server = self.programs.find_process("superlink")
        check = partial(self._check_still_up, server)
        flower_run = FlowerRun(self.programs.launch, check, app, directory)
        with record_outcome(directory):
            try:
                flower_run.run()
            except KeyboardInterrupt:
                flower_run.stop()
                raise

    def _check_still_up(self, server: psutil.Process | None) -> None:
        """Check that the SuperLink of a run is still running; for the gate, nodes and run can wait.

        Raises
        ------
        FlowerRunFailed
            If it is not, or was replaced by another.
        """
        if server is None or self.programs.find_process("superlink") != server:
            raise FlowerRunFailed(
                "the server (superlink) ended during the run; start it again with "
                "`pudica deploy up`, and resume the run; the end of its log:\n"
                + self.programs.read_log_tail("superlink", lines=3)
            )
        is_open = self.programs.find_process("gate") is not None
        if self._was_open and not is_open:
            self.programs.notify(
                "the gate has ended, and no node gets through; `pudica deploy up` restarts it, "
                "the run waits"
            )
        self._was_open = is_open


def _check_cases(experiment: Experiment, settings: list[str]) -> None:
    """Check that no case overrides what a deployment sets.

    Raises
    ------
    RequestError
        If one does.
    """
    section = getattr(experiment, experiment.system)
    for case, changes in getattr(section, "cases", {}).items():
        for key in changes:
            full = f"{experiment.system}.{key}"
            for setting in settings:
                name = setting.partition("=")[0]
                if full == name or full.startswith(f"{name}.") or name.startswith(f"{full}."):
                    raise RequestError(
                        f"case '{case}' sets {key}, which a deployment sets to "
                        f"{setting.partition('=')[2]}; leave it out of the case, or give "
                        f"--set {name}=… yourself"
                    )
