"""The organiser's side: a folder with certificates, registered nodes and runs."""

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
from pudica.models.errors import RequestError, unknown
from pudica.models.files import write_atomically
from pudica.models.naming import validate_node_name
from pudica.models.printable import to_nfc
from pudica.simulations.deployment import authority
from pudica.simulations.deployment.invitation import Invitation
from pudica.simulations.deployment.place import Place, make_folder
from pudica.simulations.programs.bundle import stage
from pudica.simulations.programs.calling import (
    CONNECTION,
    GATE,
    LOOPBACK,
    SUPERLINK,
    free_port,
    healthy,
)
from pudica.simulations.programs.submission import FlowerRunFailed, Submission, asked, recorded
from pudica.simulations.runner import prepare_resume
from pudica.strategies.app import new_directory
from pudica.strategies.core.experiment import Experiment
from pudica.strategies.core.registry import HOME, ROSTER, Registered, registered
from pudica.strategies.loading import load_experiment, read_settings

SETTINGS = "organiser.yaml"
START_SECONDS = 60.0
ANSWER_SECONDS, AWAY_SECONDS = 1800, 180


class OrganiserConfig(BaseModel):
    """``organiser.yaml``.

    Attributes
    ----------
    host : str
        By which participants reach this machine.
    port : int
    superlink : int
        Of this machine alone.
    limits : dict of str to int
        As of :class:`pudica.simulations.deployment.allowance.Limits`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    host: str = Field(pattern=r"^[^\s:/]+$")
    port: int = Field(ge=1, le=65535)
    superlink: int = Field(ge=1, le=65535)
    limits: dict[str, int] = {}


class Organiser(Place):
    """An organiser's folder.

    Parameters
    ----------
    folder : Path
    told : callable
        Is told each command of Flower's that is run.

    Raises
    ------
    RequestError
        If it is none.
    """

    PROGRAMS = ("superlink", "gate")

    def __init__(self, folder: Path, told: Callable[[str], None] = lambda _: None) -> None:
        if not (folder / SETTINGS).is_file():
            raise RequestError(
                f"{folder.absolute()} is no organiser's folder, nor a node's: go there, or name it "
                "with --folder; `pudica deploy init FOLDER --host HOST` makes an organiser's, "
                "`pudica deploy node NAME` a node's"
            )
        folder = folder.absolute()
        super().__init__(folder, told, **{HOME: str(folder)})
        self.config = read_settings(OrganiserConfig, folder / SETTINGS)
        self._was_open = True

    @classmethod
    def init(
        cls, folder: Path, host: str, port: int, told: Callable[[str], None] = lambda _: None
    ) -> Organiser:
        """Make an organiser's folder: an authority, a certified server, an invitation.

        Raises
        ------
        RequestError
            There is one already.
        """
        folder = make_folder(folder)
        settings = OrganiserConfig(host=host, port=port, superlink=free_port())
        ca = folder / "ca.crt", folder / "ca.key"
        authority.new_authority(*ca)
        authority.new_server(folder / "server.crt", folder / "server.key", host, *ca)
        text = yaml.safe_dump(settings.model_dump(), sort_keys=False)
        write_atomically(folder / SETTINGS, text.encode())
        made = cls(folder, told)
        made._invite()
        return made

    def _invite(self) -> None:
        """Write the invitation, where there is none that says how things are."""
        path = self.folder / "invitation.yaml"
        invitation = Invitation.of(f"{self.config.host}:{self.config.port}", self.folder / "ca.crt")
        if not path.is_file():
            invitation.write(path)
        elif Invitation.read(path) != invitation:
            invitation.write(path)
            self.programs.told(
                f"{path} has changed (host, port, versions or code): give it to all participants "
                "again; it says `server` in their node.yaml too"
            )

    @property
    def nodes(self) -> list[Registered]:
        """The registered nodes, in the order in which they were registered."""
        return registered(self.folder)

    # ------------------------------------------------------------------------- programs

    def up(self) -> None:
        """Start the SuperLink and the gate before it, or the one of them that is not there.

        Raises
        ------
        RequestError
            A port is taken, a certificate does not hold, or they do not come up.
        """
        authority.check_certificate(self.folder / "server.crt")
        authority.check_secret(self.folder / "server.key")
        self._invite()
        self._connect()
        missing = [name for name in self.PROGRAMS if self.programs.process(name) is None]
        if not missing:
            self.programs.told("server and gate run already")
        try:
            for name in missing:
                self._start(name)
        except RequestError:
            for name in reversed(missing):
                self.programs.stop(name)
            raise

    def _start(self, name: str) -> None:
        """Start one of the programs, and wait until it answers."""
        arguments, port = {
            "superlink": ([*SUPERLINK, *self.superlink_arguments()], self.config.superlink),
            "gate": ([*GATE, json.dumps(self._gate_settings())], self.config.port),
        }[name]
        self.programs.start(name, arguments)
        self._wait(name, port)

    def superlink_arguments(self) -> list[str]:
        """Return how `flower-superlink` is called."""
        certificates = {
            "--ssl-ca-certfile": "ca.crt",
            "--ssl-certfile": "server.crt",
            "--ssl-keyfile": "server.key",
        }
        named = [word for key, file in certificates.items() for word in (key, self._at(file))]
        return [
            *named,
            *("--enable-supernode-auth", "--disable-runtime-dependency-installation"),
            *("--host", LOOPBACK, "--port", str(self.config.superlink)),
            *("--database", str(self.flower / "state.db")),
        ]

    def is_up(self) -> bool:
        """Tell whether both are there and answer."""
        ports = {"superlink": self.config.superlink, "gate": self.config.port}
        return all(
            self.programs.process(name) is not None and healthy(port, self.folder / "ca.crt")
            for name, port in ports.items()
        )

    def _wait(self, name: str, port: int) -> None:
        try:
            answers = partial(healthy, port, self.folder / "ca.crt")
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

    def _at(self, file: str) -> str:
        return str(self.folder / file)

    def _connect(self) -> None:
        """Write how Flower's commands reach the SuperLink."""
        connection = {
            "address": f"{LOOPBACK}:{self.config.superlink}",
            "root-certificates": self._at("ca.crt"),
        }
        settings = {"superlink": {"default": CONNECTION, CONNECTION: connection}}
        write_atomically(self.flower / "config.toml", tomli_w.dumps(settings).encode())

    def _flwr(self, *arguments: str) -> dict[str, Any]:
        """Return what one of Flower's commands says as JSON."""
        log = self.programs.log("flwr")
        answer = asked(self.programs.run, log, *arguments)
        if not answer.get("success"):
            why = answer.get("error-message") or self.programs.end_of("flwr")
            raise RequestError(f"flwr {' '.join(arguments)}: {why}")
        return answer

    # --------------------------------------------------------------------------- nodes

    def register(self, public: Path, name: str) -> Registered:
        """Let a node take part from now on.

        Raises
        ------
        RequestError
            The key is none, or known already; so is the name; or the SuperLink is not up.
        """
        name = validate_node_name(name)
        fingerprint = authority.fingerprint(public)
        for known in self.nodes:
            if known.name == name:
                raise RequestError(f"a node '{name}' is registered already; choose another --name")
            if known.fingerprint == fingerprint:
                raise RequestError(f"this key is registered already, as '{known.name}'")
        self._need_up()
        try:
            made = self._flwr("supernode", "register", str(public.absolute()), CONNECTION)
        except RequestError as error:
            if "already in use" not in str(error):
                raise
            raise RequestError(
                f"{public}: Flower knows this key already, and takes none twice: it was removed, "
                "or its registration broken off. The participant makes a new one: `pudica deploy "
                "node` in a new folder, then node.key and the .pub file into the old one"
            ) from error
        entry = Registered(name, int(made["node-id"]), fingerprint, timestamp())
        self._enrol([*self.nodes, entry])
        return entry

    def remove(self, name: str) -> Registered:
        """Let a node take part no more; what it has submitted stays.

        Raises
        ------
        RequestError
            None of this name is registered, or the SuperLink is not up.
        """
        found = next((entry for entry in self.nodes if entry.name == to_nfc(name)), None)
        if found is None:
            raise unknown("node", name, [entry.name for entry in self.nodes])
        self._need_up()
        # First the gate's: whatever Flower says to the rest, the node is out.
        self._enrol([entry for entry in self.nodes if entry.name != name])
        try:
            self._flwr("supernode", "unregister", str(found.node), CONNECTION)
        except RequestError as error:
            raise RequestError(
                f"'{name}' is refused from now on, but Flower keeps node {found.node} on its list: "
                f"{error}"
            ) from error
        return found

    def _enrol(self, entries: list[Registered]) -> None:
        told = [entry._asdict() for entry in entries]
        write_atomically(self.folder / ROSTER, json.dumps(told, indent=2).encode())

    def online(self) -> dict[str, str]:
        """Return by name what the SuperLink says of registered nodes."""
        listed = {
            int(node["node-id"]): str(node["status"])
            for node in self._flwr("supernode", "list", CONNECTION)["nodes"]
        }
        return {entry.name: listed.get(entry.node, "unknown") for entry in self.nodes}

    def _need_up(self) -> None:
        if not self.is_up():
            raise RequestError("the server is not up; `pudica deploy up`")

    # ---------------------------------------------------------------------------- runs

    def prepare(
        self, source: str | None, overrides: list[str], resume: Path | None
    ) -> tuple[Experiment, Path]:
        """Return the experiment with the registered nodes in it, and its directory.

        What a deployment sets in it is told.

        Raises
        ------
        RequestError
            No node is registered, or the experiment does not hold.
        """
        self._need_up()
        names = [entry.name for entry in self.nodes]
        if not names:
            raise RequestError("no node is registered; `pudica deploy register PUBLIC_KEY`")
        if resume:
            experiment, directory = prepare_resume(source, overrides, resume)
            if not directory.is_relative_to(self.folder):
                raise RequestError(f"--resume: {resume} is no run of {self.folder}")
            return experiment, directory
        if source is None:
            raise RequestError("say which experiment: pudica deploy run NAME")
        settings = load_experiment(source, []).deployed(names)
        given = {override.partition("=")[0] for override in overrides}
        settings = [s for s in settings if s.partition("=")[0] not in given]
        patience = {"client.timeout": ANSWER_SECONDS, "client.patience": AWAY_SECONDS}
        settings += [f"{key}={value}" for key, value in patience.items() if key not in given]
        experiment = load_experiment(source, [*settings, *overrides])
        _check_cases(experiment, settings)
        data = experiment.check()
        self.programs.told("set for a deployment: " + ", ".join(settings))
        for remark in experiment.remarks(data):
            self.programs.told(remark)
        return experiment, new_directory(self.folder / "results", experiment)

    def run(self, experiment: Experiment, directory: Path) -> None:
        """Run an experiment with the registered nodes, to the end.

        Raises
        ------
        FlowerRunFailed
            It did not complete.
        """
        directory.mkdir(parents=True, exist_ok=True)
        written = self.flower / "experiments" / f"{directory.name}.yaml"
        written.parent.mkdir(exist_ok=True)
        write_atomically(written, experiment.to_yaml().encode())
        # All nodes get this, and it names nothing but places below this folder.
        config = {
            "experiment": str(written.relative_to(self.folder)),
            "out": str(directory.relative_to(self.folder)),
            "set": "",
            "vault": "",
            "engine": "deployment",
        }
        app = self.flower / "app"
        stage(app, config)
        server = self.programs.process("superlink")
        still_up = partial(self._still_up, server)
        submission = Submission(self.programs.run, still_up, app, directory)
        with recorded(directory):
            try:
                submission.run()
            except KeyboardInterrupt:
                submission.stop()
                raise

    def _still_up(self, server: psutil.Process | None) -> None:
        """See that a run's SuperLink is there; for the gate, nodes and run can wait.

        Raises
        ------
        FlowerRunFailed
            It is not, or another is in its place.
        """
        if server is None or self.programs.process("superlink") != server:
            raise FlowerRunFailed(
                "the server (superlink) ended while the run was on; start it again with "
                "`pudica deploy up`, and resume the run; the end of its log:\n"
                + self.programs.end_of("superlink", lines=3)
            )
        is_open = self.programs.process("gate") is not None
        if self._was_open and not is_open:
            self.programs.told(
                "the gate has ended, and no node gets through; `pudica deploy up` starts it again, "
                "the run waits"
            )
        self._was_open = is_open


def _check_cases(experiment: Experiment, settings: list[str]) -> None:
    """See that no case undoes what a deployment sets.

    Raises
    ------
    RequestError
        One does.
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
