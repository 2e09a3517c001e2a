"""Flower's own programs: how they are called, in which environment, and whether they answer."""

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
SPELLED = {
    SUPERLINK[1]: "flower-superlink",
    SUPERNODE[1]: "flower-supernode",
    FLWR[1]: "flwr",
    CLIENTAPP[1]: "pudica-clientapp",
    GATE[1]: "pudica-gate",
}
POLL_INTERVAL = "FLWR_SUPEREXEC_TASK_POLL_INTERVAL"
CLIENTAPP_READY = "ready for what is to be done"
CONNECTION = "pudica"
LOOPBACK = "127.0.0.1"
HEALTH_SECONDS = 5.0
# Ray's sockets lie some 70 characters below; a socket's path has room for 103 on macOS.
LONGEST_PARENT = 16


def spelled(arguments: Sequence[str]) -> str:
    """Return Python's arguments as somebody would type the command."""
    return shlex.join([SPELLED[arguments[1]], *arguments[2:]])


def begun(
    arguments: Sequence[str],
    folder: Path,
    environment: Mapping[str, str],
    log: Path,
    output: Path | None = None,
) -> subprocess.Popen[bytes]:
    """Start a program, out of reach of the terminal's Ctrl-C.

    Parameters
    ----------
    arguments : sequence of str
        Of Python.
    folder : Path
        Where it works. No package found there wins over those that are installed.
    environment : mapping of str to str
    log : Path
        Where it writes to.
    output : Path or None
        Where its standard output goes instead.
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


def environment_of(home: Path) -> dict[str, str]:
    """Return the environment of the run's processes.

    The user's own, but for Flower's settings, with which they might meet another SuperLink, and
    for the token of a Ray cluster, which they do not join. Every path is absolute.
    """
    # Heavy, and of no use to the gate.
    from pudica.clients.data.places import cache_root, data_root

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
        # `local` keeps Ray from joining a cluster that runs on this machine.
        "RAY_ADDRESS": "local",
        "RAY_TMPDIR": str(home),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "PUDICA_DATA": str(data_root().absolute()),
        "PUDICA_CACHE": str(cache_root().absolute()),
        # Flower's processes start one another by name, activated environment or not.
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
    """Make a temporary folder that only this user may enter, with a name short enough for Ray."""
    parent = tempfile.gettempdir()
    short = parent if len(parent) <= LONGEST_PARENT or os.name == "nt" else "/tmp"
    return Path(tempfile.mkdtemp(prefix="pudica-", dir=short)).resolve()


def write_ray_token(folder: Path) -> dict[str, str]:
    """Write a fresh token; return the environment in which a Ray of our own is closed by it.

    All its ports ask for the token, and listen on loopback only.

    Parameters
    ----------
    folder : Path
        Private, and there for as long as this Ray is.
    """
    token = folder / "token"
    token.touch(mode=0o600, exist_ok=False)
    token.write_text(secrets.token_hex(32), encoding="ascii")
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_ENABLE_K8S_TOKEN_AUTH": "0",
        # The only setting that keeps Ray from listening on all interfaces. Its name is for the
        # systems where that is the default.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    }


def free_port() -> int:
    """Return a port of this machine that nobody listens at."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def healthy(port: int, certificate: Path | None = None) -> bool:
    """Tell whether a server of this machine says that it is well.

    Parameters
    ----------
    certificate : Path or None
        Of the authority that certified it; None: it speaks without TLS.
    """
    connection: http.client.HTTPConnection
    if certificate:
        trust = ssl.create_default_context(cafile=certificate)
        connection = http.client.HTTPSConnection(
            LOOPBACK, port, timeout=HEALTH_SECONDS, context=trust
        )
    else:
        connection = http.client.HTTPConnection(LOOPBACK, port, timeout=HEALTH_SECONDS)
    try:
        connection.request("GET", "/health")
        with connection.getresponse() as answer:
            return answer.status < 300
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
