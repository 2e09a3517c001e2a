"""Flower apps as users write them on our engines: what Flower's own simulation gives."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import Queue
from typing import Any

import numpy as np
import psutil
import pytest
import ray
import stock_apps
import torch
from click.testing import Result
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.task_identity import TaskIdentity

from pudica.models.errors import RequestError
from pudica.simulations import simulate
from pudica.simulations.engines.cluster import connect
from pudica.simulations.engines.inprocess import InProcessGrid
from pudica.simulations.flower_project import import_apps, read_project
from pudica.strategies.core.experiment import RayConfig

STOCK = Path(__file__).parent / "stock_app"


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """One local Ray for this module; `simulate` uses the one that is there."""
    with connect(RayConfig()):
        yield


def values_of(context: Context, key: str = "arrays") -> np.ndarray:
    arrays = context.state[key].to_numpy_ndarrays()
    return np.concatenate([array.ravel() for array in arrays])


def final(apps: stock_apps.Apps) -> np.ndarray:
    return values_of(simulate(*apps, nodes=3, engine="inprocess"))


@pytest.fixture(scope="module")
def on_both(cluster: None) -> tuple[Context, Context]:
    """All stock apps, one after the other, in process and on two workers."""
    options = {"nodes": 3, "seed": 0, "num_cpus": 0.5, "workers": 2}
    here, there = (
        simulate(*stock_apps.one_after_the_other(), engine=engine, **options)
        for engine in ("inprocess", "ray")
    )
    return here, there


@pytest.mark.slow
@pytest.mark.parametrize("name", stock_apps.ALL)
def test_the_same_arrays_in_process_and_on_ray(on_both: tuple[Context, Context], name: str) -> None:
    here, there = (values_of(context, name) for context in on_both)
    assert np.isfinite(here).all()
    np.testing.assert_array_equal(here, there)


@pytest.mark.slow
def test_what_flowers_own_simulation_gives(tmp_path: Path) -> None:
    names = ["fedprox", "stateful", "handlers", "secure_aggregation"]
    out = tmp_path / "flowers.npz"
    command = [sys.executable, stock_apps.__file__, "3", str(out), *names]
    own = {**os.environ, "RAY_ADDRESS": "local"}  # Flower would join any Ray that it finds
    subprocess.run(command, check=True, capture_output=True, timeout=300, cwd=tmp_path, env=own)
    flowers = np.load(out)
    for name in names:
        # There replies are added up in the order in which they come, and rounding is random.
        tolerance = 1e-3 if name == "secure_aggregation" else 1e-12
        mine = final(getattr(stock_apps, name)())
        if name == "handlers":  # by node, in the order of Flower's random ids
            assert sorted(mine) == sorted(flowers[name])
        else:
            np.testing.assert_allclose(mine, flowers[name], rtol=tolerance, atol=tolerance)


def test_the_known_results() -> None:
    """Of the apps whose arithmetic is easy to follow."""
    start = np.concatenate([np.linspace(-1, 1, 6), np.zeros(3)])
    np.testing.assert_allclose(final(stock_apps.stateful()), start + 1 + 2)
    np.testing.assert_allclose(final(stock_apps.handlers()), [32.0] * 3)


# ------------------------------------------------------------------------ how nodes behave


def app_of(main: Callable[[Grid, Context], None]) -> ServerApp:
    app = ServerApp()
    app.main()(main)
    return app


def client_app(handler: Callable[[Message, Context], Any]) -> ClientApp:
    app = ClientApp()
    app.query()(handler)
    return app


def run_main(engine: str, client: ClientApp, main: Callable[[Grid, Context], Any], **options: Any):
    kept: list[Any] = []

    def server(grid: Grid, context: Context) -> None:
        kept.append(main(grid, context))

    simulate(app_of(server), client, engine=engine, **{"num_cpus": 0.5, "nodes": 3, **options})
    return kept[0]


def ask(
    grid: Grid,
    action: str = "query",
    nodes: list[int] | None = None,
    timeout: float | None = None,
    ttl: float | None = None,
    **say: float,
) -> list[Message]:
    content = RecordDict({"say": MetricRecord(dict(say))})
    nodes = nodes or list(grid.get_node_ids())
    messages = [Message(content, node, action, ttl=ttl) for node in nodes]
    return list(grid.send_and_receive(messages, timeout=timeout))


CONFIG = {"rate": 0.5, "on": True, "deep": {"name": "x"}, "count": 3}


@pytest.fixture(scope="module", params=["inprocess", "ray"])
def grid(request: pytest.FixtureRequest, cluster: None) -> Iterator[Grid]:
    """The grid of a ServerApp that runs in a thread as long as the tests with it."""
    opened, done = Queue[Grid](), threading.Event()

    def main(grid: Grid, context: Context) -> None:
        assert context.run_config == {"rate": 0.5, "on": True, "deep.name": "x", "count": 3}
        assert grid.run.run_id == context.run_id
        opened.put(grid)
        done.wait()

    options = {"engine": request.param, "workers": 2, "num_cpus": 0.5, "run_config": CONFIG}
    thread = threading.Thread(
        target=simulate, args=(app_of(main), stock_apps.behaving()), kwargs={"nodes": 3, **options}
    )
    thread.start()
    yield opened.get(timeout=60)
    done.set()
    thread.join(60)


def test_contexts_are_as_flower_gives_them(grid: Grid) -> None:
    found = [dict(message.content["is"]) for message in ask(grid, "query.context")]
    shared = {"num-partitions": 3, "rate": 0.5, "on": True, "deep.name": "x", "count": 3}
    assert found == [{"partition-id": place, **shared} for place in range(3)]
    types = {key: type(value) for key, value in found[0].items()}
    assert types == {key: type(value) for key, value in {"partition-id": 0, **shared}.items()}


def test_a_handler_that_raises_or_returns_no_reply_is_an_error(grid: Grid) -> None:
    errors = [message.error for message in ask(grid, "query.wrong")]
    assert {error.code for error in errors} == {ErrorCode.CLIENT_APP_RAISED_EXCEPTION}
    assert errors[0].reason == "ValueError: on purpose"
    assert "the ClientApp returned NoneType; it must return a Message" in str(errors[1].reason)
    assert "does not reply to the one it was given" in str(errors[2].reason)
    assert all(message.has_content() for message in ask(grid, "query.context"))


def test_messages_in_flight_to_one_node_are_handled_in_order(grid: Grid) -> None:
    contents = [RecordDict({"say": MetricRecord({"n": n})}) for n in range(5)]
    messages = [Message(content, 3, "query.remember") for content in contents]
    pushed = list(grid.push_messages(messages))
    assert [message.metadata.message_id for message in messages] == pushed
    arrived: list[Message] = []
    while len(arrived) < 5:
        arrived += grid.pull_messages(pushed)
    logs = {m.metadata.reply_to_message_id: list(m.content["log"]["log"]) for m in arrived}
    assert [logs[identifier] for identifier in pushed] == [list(range(n + 1)) for n in range(5)]


def test_nobody_sees_what_others_do_to_the_records_they_were_given(grid: Grid) -> None:
    content = RecordDict({"say": ConfigRecord({"numbers": [1]})})
    for times in (1, 2):
        messages = [Message(content, node, "query.change") for node in grid.get_node_ids()]
        replies = list(grid.send_and_receive(messages))
        assert [list(reply.content["seen"]["numbers"]) for reply in replies] == [[1] * times] * 3
        for reply in replies:
            reply.content["seen"]["numbers"].append(7)
    assert content == RecordDict({"say": ConfigRecord({"numbers": [1]})})


def test_timeouts_hold_and_messages_expire(grid: Grid) -> None:
    ask(grid, "query.sleep", seconds=0.0)  # the workers are up
    in_time = ask(grid, "query.sleep", timeout=1.5, seconds=4.0)
    found = [message.metadata.src_node_id for message in in_time]
    assert found == [2, 3] or (isinstance(grid, InProcessGrid) and found == [2, 3, 4])
    expired = ask(grid, "query.sleep", [4], ttl=0.2, seconds=0.6)
    assert expired[0].error.code == ErrorCode.MESSAGE_UNAVAILABLE
    assert ask(grid, "query.sleep", [4], seconds=0.0)[0].has_content()


def test_a_node_that_is_not_there_is_named(grid: Grid) -> None:
    with pytest.raises(ValueError, match="no node 9; this simulation has nodes 2 to 4"):
        ask(grid, "query", [9])


def test_one_pull_in_process_finds_all_that_flowers_nodes_would_have_answered() -> None:
    def main(grid: Grid, _: Context) -> int:
        pushed = grid.push_messages([Message(RecordDict(), n, "query") for n in (2, 3, 4)])
        return len(list(grid.pull_messages(pushed)))

    client = client_app(lambda message, _: Message(RecordDict(), reply_to=message))
    assert run_main("inprocess", client, main) == 3


def test_nodes_of_a_worker_that_dies_keep_their_state(cluster: None) -> None:
    def handler(message: Message, context: Context) -> Message:
        calls = context.state.get("calls", MetricRecord({"count": 0}))["count"] + 1
        context.state["calls"] = MetricRecord({"count": calls, "process": os.getpid()})
        return Message(context.state, reply_to=message)

    def main(grid: Grid, _: Context) -> Any:
        first = ask(grid)[0].content["calls"]
        psutil.Process(first["process"]).kill()
        return first["process"], [m.content["calls"] for m in ask(grid)]

    process, calls = run_main("ray", client_app(handler), main, workers=1)
    assert [each["count"] for each in calls] == [2, 2, 2]
    assert process not in {each["process"] for each in calls}


# ----------------------------------------------------------------------- traces it leaves


def drawing_app() -> ClientApp:
    def handler(message: Message, context: Context) -> Message:
        drawn = [random.random(), float(np.random.rand()), float(torch.rand(()))]  # noqa: NPY002
        return Message(RecordDict({"is": MetricRecord({"drawn": drawn})}), reply_to=message)

    return client_app(handler)


def drawn(grid: Grid, _: Context) -> list[list[float]]:
    return [list(m.content["is"]["drawn"]) for m in ask(grid) + ask(grid)]


def test_a_seed_seeds_every_message_anew() -> None:
    """Whatever the engine: the stock apps draw, too."""
    first, again, other = (
        run_main("inprocess", drawing_app(), drawn, seed=seed) for seed in (3, 3, 4)
    )
    assert first == again
    assert first != other
    assert len({value for values in first for value in values}) == 18
    free, freely = (run_main("inprocess", drawing_app(), drawn) for _ in range(2))
    assert free != freely


def test_nothing_is_left_in_this_process(tmp_path: Path) -> None:
    identity = [getattr(TaskIdentity, name) for name in ("_run_id", "_node_id", "_task_id")]
    before = random.getstate(), torch.get_rng_state(), list(sys.path), set(sys.modules)
    with import_apps(read_project(STOCK)) as apps:
        assert "quickstart.task" in sys.modules
        simulate(*apps, nodes=2, engine="inprocess", run_config=read_project(STOCK).config, seed=0)
    assert random.getstate() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])
    assert sys.path == before[2]
    assert not any(name.startswith("quickstart") for name in set(sys.modules) - before[3])
    after = [getattr(TaskIdentity, name) for name in ("_run_id", "_node_id", "_task_id")]
    assert after == identity


def test_apps_run_outside_the_main_thread() -> None:
    found: list[np.ndarray] = []
    apps = stock_apps.fedprox()
    thread = threading.Thread(target=lambda: found.append(final(apps)))
    thread.start()
    thread.join(60)
    np.testing.assert_allclose(found[0], final(stock_apps.fedprox()))  # sampled in any order


# -------------------------------------------------------------------------- wrong requests


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nodes": 0}, "nodes: 0; allowed: a whole number from 1 on"),
        ({"nodes": True}, "nodes: True"),
        ({"engine": "rya"}, "unknown engine 'rya'. Did you mean 'ray'?"),
        ({"engine": "flower"}, "unknown engine 'flower'"),
        ({"num_cpus": 0}, "num_cpus: 0; allowed: a number above 0"),
        ({"num_gpus": -1}, "num_gpus: -1"),
        ({"workers": 0}, "workers: 0"),
        ({"seed": -1}, "seed: -1"),
        ({"run_config": {"a": [1]}}, "run_config: The value for key a"),
    ],
)
def test_wrong_requests_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError) as refused:
        simulate(*stock_apps.fedprox(), **{"nodes": 2, "engine": "inprocess", **options})
    assert message in str(refused.value)


def test_apps_in_the_wrong_place_are_refused() -> None:
    server, client = stock_apps.fedprox()
    with pytest.raises(RequestError, match="server_app: a ClientApp; allowed: a Flower ServerApp"):
        simulate(client, server, nodes=2)  # type: ignore[arg-type]


def test_what_workers_can_not_load_is_refused(cluster: None, tmp_path: Path) -> None:
    lock = threading.Lock()
    server, _ = stock_apps.fedprox()

    def locked(message: Message, context: Context) -> Message:
        with lock:
            return Message(RecordDict(), reply_to=message)

    with pytest.raises(RequestError, match="can't be sent to Ray workers: TypeError"):
        simulate(server, client_app(locked), nodes=2, engine="ray")
    (tmp_path / "only_here.py").write_text("def handler(message, context): ...")
    sys.path.insert(0, str(tmp_path))
    try:
        import only_here  # type: ignore[import-not-found]
    finally:
        sys.path.remove(str(tmp_path))
    with pytest.raises(RequestError, match=r"can't load the ClientApp.*only_here"):
        simulate(server, client_app(only_here.handler), nodes=2, engine="ray", num_cpus=0.5)


def test_more_workers_than_fit_are_refused(cluster: None) -> None:
    many = int(ray.cluster_resources()["CPU"]) + 1
    with pytest.raises(RequestError, match=f"workers: {many} workers of 1 CPUs"):
        simulate(*stock_apps.fedprox(), nodes=100, engine="ray", workers=many)


# ------------------------------------------------------------------------- a folder, a command


@pytest.fixture
def app(tmp_path: Path) -> Callable[..., Path]:
    """Write an app: ``app(server="…", client="…", project="…")``."""
    (tmp_path / "mine").mkdir()

    def write(
        server: str = "", client: str = "", project: str | None = None, config: str = ""
    ) -> Path:
        folder = tmp_path / "mine"
        (folder / "server.py").write_text(
            server
            or "from flwr.serverapp import ServerApp\napp = ServerApp()\n"
            "@app.main()\ndef main(grid, context):\n    print(sorted(context.run_config.items()))\n"
        )
        (folder / "client.py").write_text(
            client or "from flwr.clientapp import ClientApp\napp = ClientApp()\n"
        )
        default = (STOCK / "pyproject.toml").read_text().partition("[tool.flwr.app.comp")[0]
        components = (
            '[tool.flwr.app.components]\nserverapp = "server:app"\nclientapp = "client:app"'
        )
        text = project or f"{default}{components}\n[tool.flwr.app.config]\n{config}\n"
        (folder / "pyproject.toml").write_text(text)
        return folder

    return write


def trained(path: Path) -> torch.Tensor:
    return torch.cat([values.flatten() for values in torch.load(path).values()])


@pytest.mark.slow
def test_the_command_runs_a_folder_on_either_engine(
    cluster: None, pudica: Callable[..., Result], tmp_path: Path
) -> None:
    for engine in ("inprocess", "ray"):
        out = f"out='{tmp_path / engine}' num-server-rounds=1 learning-rate=1"
        options = {"engine": engine, "nodes": 4, "num-cpus": 0.5, "workers": 2, "seed": 0}
        words = [word for key, value in options.items() for word in (f"--{key}", value)]
        done = pudica("simulate", STOCK, *words, "--run-config", out)
        assert done.exit_code == 0, done.output
    assert torch.equal(trained(tmp_path / "inprocess"), trained(tmp_path / "ray"))
    assert str(STOCK) not in sys.path
    assert not any(name.startswith("quickstart") for name in sys.modules)


def test_settings_are_overridden_as_flower_does(
    pudica: Callable[..., Result], app: Callable[..., Path], tmp_path: Path
) -> None:
    folder = app(
        config="rate = 0.1\nrounds = 3\nname = 'a'\non = false\n[tool.flwr.app.config.b]\nc=1"
    )

    def settings(*texts: str) -> str:
        options = [word for text in texts for word in ("--run-config", text)]
        done = pudica("simulate", folder, "--engine", "inprocess", *options)
        assert done.exit_code == 0, done.output
        return done.stdout

    assert "('b.c', 1), ('name', 'a'), ('on', False), ('rate', 0.1), ('rounds', 3)" in settings()
    given = settings("rate=1 name='x y'", "b.c=2 on=true")
    assert "('b.c', 2), ('name', 'x y'), ('on', True), ('rate', 1.0)" in given
    (tmp_path / "more.toml").write_text("rounds = 7")
    assert "('rounds', 7)" in settings(str(tmp_path / "more.toml"))


WRONG = {
    "no folder": ({}, ["--nodes", "2"], "nowhere", "no Flower app, there is no pyproject.toml"),
    "not TOML": ({"project": "["}, [], "mine", "not that of a Flower app"),
    "no components": ({"project": "[project]\nname='a'"}, [], "mine", "[tool.flwr.app]"),
    "unknown key": ({"config": "rounds=1"}, ["-r", "round=2"], "mine", "Did you mean 'rounds'?"),
    "wrong type": ({"config": "rounds=1"}, ["-r", "rounds=0.5"], "mine", "allowed: int"),
    "not a pair": ({"config": "rounds=1"}, ["-r", "rounds 2"], "mine", "'rounds 2' is no KEY"),
    "no quotes": ({"config": "name=''"}, ["-r", "name=me"], "mine", "--run-config: The provided"),
    "no nodes": ({}, ["--nodes", "0"], "mine", "nodes: 0; allowed"),
    "no engine": ({}, ["--engine", "flower"], "mine", "unknown engine 'flower'"),
    "no such import": ({"client": "import not_there"}, [], "mine", "No module named 'not_there'"),
    "no such object": ({"client": "x = 1"}, [], "mine", "there is no 'app' in client"),
    "no app": ({"client": "app = 1"}, [], "mine", "a int; allowed: a Flower ClientApp"),
}


@pytest.mark.parametrize("case", WRONG, ids=lambda case: case.replace(" ", "-"))
def test_a_wrong_command_is_refused(
    pudica: Callable[..., Result], app: Callable[..., Path], tmp_path: Path, case: str
) -> None:
    files, options, folder, message = WRONG[case]
    app(**files)
    options = ["--run-config" if word == "-r" else word for word in options]
    engine = [] if "--engine" in options else ["--engine", "inprocess"]
    refused = pudica("simulate", tmp_path / folder, *engine, *options)
    assert refused.exit_code == 2, refused.output
    assert message in refused.output
    assert "Traceback" not in refused.output


def test_an_app_that_fails_says_where(
    pudica: Callable[..., Result], app: Callable[..., Path]
) -> None:
    folder = app(
        server="from flwr.serverapp import ServerApp\napp = ServerApp()\n"
        "@app.main()\ndef main(grid, context):\n    raise KeyError('lost')\n"
    )
    failed = pudica("simulate", folder, "--engine", "inprocess")
    assert failed.exit_code == 1
    assert "error: the app failed: KeyError: 'lost'" in failed.output
    assert "server.py, line 5, main" in failed.output
    (folder / "client.py").write_text("1 +")
    assert pudica("simulate", folder, "--engine", "inprocess").exit_code == 1


def test_modules_of_an_app_come_first_and_only_while_it_runs(
    pudica: Callable[..., Result], app: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though another `client` is loaded already."""
    other = type(sys)("client")
    monkeypatch.setitem(sys.modules, "client", other)
    assert pudica("simulate", app(), "--engine", "inprocess").exit_code == 0
    assert sys.modules["client"] is other
    assert "server" not in sys.modules


@pytest.mark.slow
def test_an_app_in_a_script_reaches_the_workers(tmp_path: Path) -> None:
    """Its own functions, and modules that lie beside it."""
    (tmp_path / "helper.py").write_text("def double(x):\n    return 2 * x\n")
    (tmp_path / "script.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, "script.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "answers [2, 4, 6]" in done.stdout, done.stdout + done.stderr
    assert "a node speaks" in done.stdout + done.stderr


SCRIPT = """
from flwr.app import Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from helper import double
from pudica.simulations import simulate

server, client = ServerApp(), ClientApp()


@client.query()
def answer(message, context):
    print("a node speaks")
    value = MetricRecord({"value": double(context.node_config["partition-id"] + 1)})
    return Message(RecordDict({"m": value}), reply_to=message)


@server.main()
def main(grid, context):
    messages = [Message(RecordDict(), node, "query") for node in grid.get_node_ids()]
    replies = grid.send_and_receive(messages)
    print("answers", [reply.content["m"]["value"] for reply in replies])
    import time
    time.sleep(1)  # Ray passes on what workers print a little later


simulate(server, client, nodes=3, engine="ray", num_cpus=0.5)
"""
