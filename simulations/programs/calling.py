"""Start Flower's own programs: command lines, environment, ports and health checks."""

from __future__ import annotations

import http.client
import os
import secrets
import shlex
import socket
import ssl
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

SUPERLINK = ("-c", "from flwr.superlink.cli import flower_superlink as main; main()")
SUPERNODE = ("-c", "from flwr.supernode.cli import flower_supernode as main; main()")
FLWR = ("-c", "from flwr.cli.app import app as main; main()")
CLIENTAPP = ("-c", "from pudica.simulations.deployment.clientapp import main; main()")
GATE = ("-c", "from pudica.simulations.deployment.gate import main; main()")
COMMAND_NAMES = {
    SUPERLINK[1]: "flower-superlink",
    SUPERNODE[1]: "flower-supernode",
    FLWR[1]: "flwr",
    CLIENTAPP[1]: "pudica-clientapp",
    GATE[1]: "pudica-gate",
}
POLL_INTERVAL = "FLWR_SUPEREXEC_TASK_POLL_INTERVAL"
CLIENTAPP_READY = "ready for tasks"
CONNECTION = "pudica"
LOOPBACK = "127.0.0.1"
HEALTH_SECONDS = 5.0
# Ray's sockets add some 70 characters to this path; macOS allows 103 for a socket.
MAX_PARENT_LENGTH = 16


def format_command(arguments: Sequence[str]) -> str:
    """Return Python's arguments as the command line that a user would type."""
    return shlex.join([COMMAND_NAMES[arguments[1]], *arguments[2:]])


def start_program(
    arguments: Sequence[str],
    folder: Path,
    environment: Mapping[str, str],
    log: Path,
    output: Path | None = None,
) -> subprocess.Popen[bytes]:
    """Start a program in a new session, so that Ctrl-C in the terminal does not reach it.

    Parameters
    ----------
    arguments : sequence of str
        Arguments of the Python interpreter.
    folder : Path
        Working directory. Packages in it do not shadow installed ones.
    log, output : Path
        Files to which all output, or only errors and standard output, are appended.
    """
    with log.open("ab") as errors, (output or log).open("ab") as standard:
        return subprocess.Popen(
            [sys.executable, "-P", *arguments],
            cwd=folder,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=standard,
            stderr=errors,
            start_new_session=True,
        )


def build_environment(home: Path) -> dict[str, str]:
    """Return the environment variables for the processes of a run.

    The user's own environment, without Flower's settings (which could point to another SuperLink)
    and without the token of a Ray cluster (which the processes do not join). All paths are
    absolute.
    """
    # Heavy imports, which the gate does not need.
    from pudica.clients.data.source import cache_root, data_root

    others = ("FLWR_", "RAY_AUTH_")
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(others)}
    search = [str(Path(p).absolute()) for p in os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    executables = (str(Path(sys.executable).parent), sysconfig.get_path("scripts"))
    own = {
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        POLL_INTERVAL: "0.1",
        # `local` keeps Ray from joining a cluster already running on this machine.
        "RAY_ADDRESS": "local",
        "RAY_TMPDIR": str(home),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "PUDICA_DATA": str(data_root().absolute()),
        "PUDICA_CACHE": str(cache_root().absolute()),
        # Flower's processes start each other by name, even if no environment is activated.
        "PATH": os.pathsep.join([*executables, os.environ.get("PATH", os.defpath)]),
        "PYTHONUNBUFFERED": "1",
        "PYTHONIOENCODING": "utf-8",
    }
    if os.environ.get("PYTHONPATH"):
        own["PYTHONPATH"] = os.pathsep.join(search)
    for name in ("no_proxy", "NO_PROXY"):
        own[name] = ",".join(filter(None, [os.environ.get(name), "127.0.0.1", "localhost"]))
    return inherited | own


def make_private_folder() -> Path:
    """Create a temporary folder for this user only, with a path short enough for Ray."""
    parent = tempfile.gettempdir()
    short = parent if len(parent) <= MAX_PARENT_LENGTH or os.name == "nt" else "/tmp"
    return Path(tempfile.mkdtemp(prefix="pudica-", dir=short)).resolve()


def write_ray_token(folder: Path) -> dict[str, str]:
    """Write a new token and return the environment that protects our own Ray with it.

    All ports of that Ray require the token and listen on loopback only. The private folder must
    exist as long as this Ray does.
    """
    token = folder / "token"
    token.touch(mode=0o600, exist_ok=False)
    token.write_text(secrets.token_hex(32), encoding="ascii")
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_ENABLE_K8S_TOKEN_AUTH": "0",
        # The only setting that keeps Ray from listening on all interfaces. It is named after the
        # systems on which that is the default.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    }


def find_free_port() -> int:
    """Return a port of this machine on which nothing listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def is_healthy(port: int, certificate: Path | None = None) -> bool:
    """Return whether a server on this machine reports that it is healthy.

    ``certificate``: of the authority that signed the server's; None if it does not use TLS.
    """
    connection = http.client.HTTPConnection(LOOPBACK, port, timeout=HEALTH_SECONDS)
    if certificate:
        trust = ssl.create_default_context(cafile=certificate)
        connection = http.client.HTTPSConnection(
            LOOPBACK, port, timeout=HEALTH_SECONDS, context=trust
        )
    try:
        connection.request("GET", "/health")
        with connection.getresponse() as answer:
            return answer.status < 300
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
