"""The organiser's side: a folder with certificates, registered nodes and runs."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import tomli_w
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from clients.node import check_name
from models.errors import RequestError
from models.files import write_atomically
from simulations.deployment import authority
from simulations.deployment.invitation import Invitation
from simulations.deployment.processes import Programs
from simulations.programs.bundle import stage
from simulations.programs.calling import (
    CONNECTION,
    FLWR,
    GATE,
    LOOPBACK,
    SUPERLINK,
    environment_of,
    free_port,
    healthy,
)
from simulations.programs.submission import FlowerRunFailed, Submission, close_record
from simulations.runner import resumed
from strategies.app import new_directory
from strategies.experiment import Experiment
from strategies.loading import load_experiment
from strategies.roster import HOME, ROSTER, Registered, registered

SETTINGS = "organiser.yaml"
START_SECONDS = 60.0
ANSWER_SECONDS = 1800


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
        As of :class:`simulations.deployment.gate.Limits`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    host: str = Field(pattern=r"^[^\s:/]+$")
    port: int = Field(ge=1, le=65535)
    superlink: int = Field(ge=1, le=65535)
    limits: dict[str, int] = {}


class Organiser:
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
        self.folder = folder.absolute()
        path = self.folder / SETTINGS
        try:
            self.config = OrganiserConfig.model_validate(yaml.safe_load(path.read_text()))
        except OSError as error:
            raise RequestError(
                f"{folder} is no organiser's folder; make one with `pudica deploy init {folder}`"
            ) from error
        except (yaml.YAMLError, ValidationError) as error:
            raise RequestError(f"{path}: {error}") from error
        self.flower = self.folder / "flower"
        self.programs = Programs(self.flower / "work", self._environment(), told)

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
        folder = folder.absolute()
        if folder.exists() and any(folder.iterdir()):
            raise RequestError(f"{folder} is not empty; name a new folder")
        (folder / "flower" / "work").mkdir(parents=True, mode=0o700)
        folder.chmod(0o700)
        settings = OrganiserConfig(host=host, port=port, superlink=free_port())
        ca = folder / "ca.crt", folder / "ca.key"
        authority.new_authority(*ca)
        authority.new_server(folder / "server.crt", folder / "server.key", host, *ca)
        text = yaml.safe_dump(settings.model_dump(), sort_keys=False)
        write_atomically(folder / SETTINGS, text.encode())
        Invitation.of(f"{host}:{port}", ca[0]).write(folder / "invitation.yaml")
        return cls(folder, told)

    @property
    def nodes(self) -> list[Registered]:
        """The registered nodes, in the order in which they were registered."""
        return registered(self.folder)

    # ------------------------------------------------------------------------- programs

    def up(self) -> None:
        """Start the SuperLink and the gate before it.

        Raises
        ------
        RequestError
            A port is taken, a certificate does not hold, or they do not come up.
        """
        authority.check_certificate(self.folder / "server.crt")
        authority.check_secret(self.folder / "server.key")
        self._connect()
        self.programs.start("superlink", [*SUPERLINK, *self.superlink_arguments()])
        self._wait("superlink", self.config.superlink)
        self.programs.start("gate", [*GATE, json.dumps(self._gate_settings())])
        self._wait("gate", self.config.port)

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

    def down(self) -> list[str]:
        """End them; return which there were."""
        return [name for name in reversed(self.PROGRAMS) if self.programs.stop(name)]

    def is_up(self) -> bool:
        """Tell whether both are there and answer."""
        ports = {"superlink": self.config.superlink, "gate": self.config.port}
        return all(
            self.programs.process(name) is not None and healthy(port, self.folder / "ca.crt")
            for name, port in ports.items()
        )

    def _wait(self, name: str, port: int) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not healthy(port, self.folder / "ca.crt"):
            if self.programs.process(name) is None:
                end = self.programs.end_of(name)
                self.down()
                taken = "address already in use" in end.lower()
                hint = f"port {port} is taken: change it in {SETTINGS}\n" if taken else ""
                raise RequestError(f"{name} did not start: {hint}{end}")
            if time.monotonic() > deadline:
                self.down()
                raise RequestError(f"{name} did not answer within {START_SECONDS:g} s")
            time.sleep(0.1)

    def _gate_settings(self) -> dict[str, Any]:
        local = self.config.host in ("localhost", LOOPBACK)
        return {
            "folder": str(self.folder),
            "host": LOOPBACK if local else "0.0.0.0",
            "port": self.config.port,
            "superlink": self.config.superlink,
            "limits": self.config.limits,
        }

    def _environment(self) -> dict[str, str]:
        return {**environment_of(self.flower), HOME: str(self.folder)}

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
        said = self.flower / "said.json"
        said.unlink(missing_ok=True)
        log = self.programs.log("flwr")
        self.programs.run(log, *FLWR, *arguments, "--format", "json", output=said).wait()
        text = said.read_text(encoding="utf-8")
        try:
            answer: dict[str, Any] = json.loads(text)
        except ValueError:
            answer = {}
        if not answer.get("success"):
            why = answer.get("error-message") or text or self.programs.end_of("flwr")
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
        check_name(name)
        fingerprint = authority.fingerprint(public)
        for known in self.nodes:
            if known.name == name:
                raise RequestError(f"a node '{name}' is registered already; choose another --name")
            if known.fingerprint == fingerprint:
                raise RequestError(f"this key is registered already, as '{known.name}'")
        self._need_up()
        made = self._flwr("supernode", "register", str(public.absolute()), CONNECTION)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        entry = Registered(name, int(made["node-id"]), fingerprint, now)
        entries = [one._asdict() for one in (*self.nodes, entry)]
        write_atomically(self.folder / ROSTER, json.dumps(entries, indent=2).encode())
        return entry

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
    ) -> tuple[Experiment, Path, list[str]]:
        """Return the experiment with the registered nodes in it, its directory, what was set.

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
            experiment, directory = resumed(source, overrides, resume)
            if not directory.is_relative_to(self.folder):
                raise RequestError(f"--resume: {resume} is no run of {self.folder}")
            return experiment, directory, []
        if source is None:
            raise RequestError("say which experiment: pudica deploy run NAME")
        settings = load_experiment(source, []).deployed(names)
        given = {override.partition("=")[0] for override in overrides}
        settings = [s for s in settings if s.partition("=")[0] not in given]
        if "client.timeout" not in given:
            settings.append(f"client.timeout={ANSWER_SECONDS}")
        experiment = load_experiment(source, [*settings, *overrides])
        _check_cases(experiment, settings)
        experiment.check()
        return experiment, new_directory(self.folder / "results", experiment), settings

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
        submission = Submission(self.programs.run, self._still_up, app, directory)
        try:
            submission.run()
        except KeyboardInterrupt:
            submission.stop()
            close_record(directory, "interrupted", "stopped from the keyboard")
            raise
        except FlowerRunFailed as error:
            close_record(directory, "failed", str(error))
            raise

    def _still_up(self) -> None:
        for name in self.PROGRAMS:
            self.programs.check(name)


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
