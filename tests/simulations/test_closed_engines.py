"""Who knows no more than a port gets nothing from a simulation that runs."""

from __future__ import annotations

import http.client
import ipaddress
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import psutil
import pytest
import ray

from pudica.models.errors import RequestError
from pudica.simulations.engines import flower
from pudica.simulations.engines.cluster import connect
from pudica.simulations.programs.calling import LOOPBACK, make_private_folder, write_ray_token
from pudica.strategies.core.experiment import RayConfig
from pudica.strategies.loading import load_experiment

ATTACK = """
import sys
import ray

def code():
    import os
    return os.getpid()

ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
print("code ran in", ray.get(ray.remote(num_cpus=0)(code).remote(), timeout=60))
"""
# As somebody starts a cluster: reachable from elsewhere, with a token.
HEAD = """
import sys
import ray

ray.init(address="local", include_dashboard=False, num_cpus=1, _temp_dir=sys.argv[1])
print(ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()
"""
# As Flower starts Ray for its simulation.
FLOWERS_RAY = """
import time
import ray

ray.init(num_cpus=1, log_to_driver=False)
print(ray.get_runtime_context().gcs_address, flush=True)
time.sleep(300)
"""
# One that each of Ray's servers has. What a server has not, it calls unimplemented.
pytestmark = pytest.mark.slow

METHODS = (
    "NodeInfoGcsService/GetAllNodeInfo",
    "NodeManagerService/GetNodeStats",
    "ObjectManagerService/Pull",
    "CoreWorkerService/PushTask",
)
REFUSED, ABSENT = grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.UNIMPLEMENTED
START_SECONDS = 60.0


@dataclass(frozen=True)
class Listener:
    process: psutil.Process
    host: str
    port: int
    name: str = field(compare=False)
    """The name of the process, which changes as Ray gives it a title."""


def family(process: psutil.Process) -> list[psutil.Process]:
    return [process, *process.children(recursive=True)]


def listeners(processes: list[psutil.Process]) -> set[Listener]:
    found = set()
    for process in processes:
        with suppress(psutil.NoSuchProcess):  # an idle worker that was not needed any more
            found |= {
                Listener(process, connection.laddr.ip, connection.laddr.port, process.name())
                for connection in process.net_connections("tcp")
                if connection.status == psutil.CONN_LISTEN
            }
    return found


def is_loopback(host: str) -> bool:
    address = ipaddress.ip_address(host)
    mapped = getattr(address, "ipv4_mapped", None)  # ::ffff:127.0.0.1
    return (mapped or address).is_loopback


def refuses(port: int) -> bool:
    """Tell whether a port answers nothing to who has no token."""
    answers = set(grpc_answers(port))
    if REFUSED in answers:
        return answers <= {REFUSED, ABSENT}
    connection = http.client.HTTPConnection(LOOPBACK, port, timeout=10)
    try:
        connection.request("POST", "/get_runtime_envs_info")
        return connection.getresponse().status == http.HTTPStatus.UNAUTHORIZED
    except ConnectionRefusedError:
        return True  # an idle worker's that was not needed any more
    finally:
        connection.close()


def grpc_answers(port: int) -> Iterator[grpc.StatusCode]:
    options = (("grpc.enable_http_proxy", 0),)
    with grpc.insecure_channel(f"{LOOPBACK}:{port}", options) as channel:
        for method in METHODS:
            try:
                channel.unary_unary(f"/ray.rpc.{method}")(b"", timeout=10)
                yield grpc.StatusCode.OK
            except grpc.RpcError as error:
                yield error.code()


def attack(address: str, home: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run code on a Ray, from a process that shares nothing with this one but the machine."""
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        # Else Ray asks at this machine's outward address, where nobody listens: the wrong reason.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_NUM_REDIS_GET_RETRIES": "2",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }
    return subprocess.run(
        [sys.executable, "-c", ATTACK, address],
        env=environment | variables,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def environment() -> dict[str, str]:
    """Return this process's environment, less what Ray itself sets and leaves."""
    of_ray = ("RAY_CLIENT_MODE", "PYTHONBREAKPOINT")
    return {key: value for key, value in os.environ.items() if key not in of_ray}


def run_code() -> Mapping[str, str]:
    """Run a function on whatever Ray this process is connected to; return its environment."""

    def variables() -> dict[str, str]:
        return dict(os.environ)

    task: Any = ray.remote(num_cpus=0)(variables)
    found: dict[str, str] = ray.get(task.remote(), timeout=60)
    return found


# ---------------------------------------------------------------------- a cluster, by address
# (Before an instance of our own is up: a process is connected to one Ray at a time.)


class Head(NamedTuple):
    address: str
    token: Path


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """A cluster that wants a token."""
    folder = make_private_folder()
    token = Path(write_ray_token(folder)["RAY_AUTH_TOKEN_PATH"])
    own = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    process = subprocess.Popen(
        [sys.executable, "-c", HEAD, str(folder / "ray")],
        env=os.environ | own,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    address = process.stdout.readline().strip()
    assert address
    yield Head(address, token)
    process.communicate(timeout=60)
    shutil.rmtree(folder, ignore_errors=True)


def join(config: RayConfig) -> None:
    with connect(config):
        pass


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Ray try a refused connection twice, and not for 20 seconds."""
    monkeypatch.setattr("ray._private.ray_constants.NUM_REDIS_GET_RETRIES", 2)


@pytest.fixture
def no_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A user who has no token anywhere."""
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


def test_a_cluster_is_joined_with_its_token(head: Head, no_token: None) -> None:
    before = environment()
    with connect(RayConfig(address=head.address, token=head.token)):
        of_worker = run_code()
        secret = head.token.read_text()
        assert secret not in os.environ.values()
        assert secret not in of_worker.values()
    assert environment() == before


def test_a_cluster_is_joined_with_the_users_own_token(
    head: Head, no_token: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(head.token))
    with connect(RayConfig(address=head.address)):
        assert run_code()


def test_a_cluster_is_not_joined_without_its_token(
    head: Head, no_token: None, hasty: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RequestError, match="wants its token"):
        join(RayConfig(address=head.address))
    monkeypatch.setenv("RAY_AUTH_MODE", "token")  # and none is found
    with pytest.raises(RequestError, match="wants its token"):
        join(RayConfig(address=head.address))
    wrong = Path(write_ray_token(tmp_path)["RAY_AUTH_TOKEN_PATH"])
    with pytest.raises(RequestError, match=f"refuses the token in {wrong}"):
        join(RayConfig(address=head.address, token=wrong))


def test_a_token_that_others_may_read_is_refused(tmp_path: Path) -> None:
    token = tmp_path / "token"
    with pytest.raises(RequestError, match=r"ray\.token: there is no file"):
        join(RayConfig(address="127.0.0.1:1", token=token))
    token.write_text("secret")
    token.chmod(0o640)
    with pytest.raises(RequestError, match="chmod 600"):
        join(RayConfig(address="127.0.0.1:1", token=token))


def test_an_experiment_names_the_tokens_file_and_holds_no_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine").write_text("a-secret")
    named = ["ray.address=there:1", "ray.token=mine"]
    experiment = load_experiment("themis-digits", named)
    assert experiment.ray.token == tmp_path / "mine"
    assert "a-secret" not in experiment.to_yaml()
    with pytest.raises(RequestError, match="token: opens a cluster, and address names none"):
        load_experiment("themis-digits", ["ray.token=mine"])


# ------------------------------------------------------------------------ an instance of our own


@dataclass(frozen=True)
class Former:
    """What was, and is, of an instance that has ended."""

    token: Path
    secret: str
    before: Mapping[str, str]
    after: Mapping[str, str]


@dataclass(frozen=True)
class Instance:
    """One that runs; what this process listened at before is none of it."""

    address: str
    token: Path
    worker: int
    """The id of the worker's process."""
    former_listeners: set[Listener]

    def listeners(self) -> set[Listener]:
        return listeners(family(psutil.Process())) - self.former_listeners


def token_file() -> Path:
    return Path(os.environ.get("RAY_AUTH_TOKEN_PATH", "/there/is/none"))


@pytest.fixture(scope="module")
def former() -> Former:
    before = environment()
    with connect(RayConfig()):
        token = token_file()
        secret = token.read_text() if token.exists() else ""
    return Former(token, secret, before, environment())


@pytest.fixture(scope="module")
def instance(former: Former) -> Iterator[Instance]:
    """The second instance of this process, with a worker in it."""
    before = listeners(family(psutil.Process()))

    class Actor:
        def process(self) -> int:
            return os.getpid()

    with connect(RayConfig()):
        actor: Any = ray.remote(num_cpus=0)(Actor).remote()
        worker = ray.get(actor.process.remote(), timeout=60)
        yield Instance(ray.get_runtime_context().gcs_address, token_file(), worker, before)


def test_code_runs_for_who_has_the_token_and_nobody_else(
    instance: Instance, tmp_path: Path
) -> None:
    for variables in ({}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}):
        refused = attack(instance.address, tmp_path, **variables)
        assert "code ran" not in refused.stdout
        assert "Authentication token is missing or incorrect" in refused.stderr
    own = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(instance.token)}
    assert "code ran" in attack(instance.address, tmp_path, **own).stdout


def test_every_port_is_on_loopback_and_asks_for_the_token(instance: Instance) -> None:
    found = instance.listeners()
    names = {each.process.pid: each.name for each in found}
    assert {"gcs_server", "raylet"} <= set(names.values())
    python = {pid for pid, name in names.items() if name not in ("gcs_server", "raylet")}
    # And Ray's agent for environments. Ray can't always give what runs in Python a title.
    assert {os.getpid(), instance.worker} < python
    assert [each for each in found if not is_loopback(each.host)] == []
    assert [each for each in found if not refuses(each.port)] == []


def test_the_token_is_in_one_file_of_its_owners(instance: Instance) -> None:
    secret, folder = instance.token.read_text(), instance.token.parent
    assert len(secret) == 64
    assert instance.token.stat().st_mode & 0o777 == 0o600
    assert folder.stat().st_mode & 0o777 == 0o700
    assert secret not in os.environ.values()
    for process in family(psutil.Process()):
        with suppress(psutil.NoSuchProcess):
            assert secret not in " ".join(process.cmdline())
            assert secret not in process.environ().values()
    holding = [p for p in folder.rglob("*") if p.is_file() and secret in p.read_text("latin-1")]
    assert holding == [instance.token]
    # Whatever Ray lets others write to lies below a folder that they can't enter.
    assert any(folder.rglob("gcs_server.out"))


def test_nothing_of_an_instance_is_left_and_the_next_has_another_token(
    former: Former, instance: Instance
) -> None:
    assert not former.token.parent.exists()
    assert former.after == former.before
    assert former.secret
    assert instance.token.read_text() != former.secret


# --------------------------------------------------------------------------- Flower's own


def test_flowers_ray_is_closed_too(tmp_path: Path) -> None:
    said = tmp_path / "said"
    with flower.temporary_flower_home() as home:
        process = home.start(tmp_path / "log", "-c", FLOWERS_RAY, output=said)
        deadline = time.monotonic() + START_SECONDS
        while not said.exists() or not said.read_text().endswith("\n"):
            assert process.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        found = listeners(family(psutil.Process(process.pid)))
        assert "gcs_server" in {each.name for each in found}
        assert [each for each in found if not is_loopback(each.host)] == []
        assert [each for each in found if not refuses(each.port)] == []
