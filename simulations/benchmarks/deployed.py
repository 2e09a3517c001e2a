"""The cost of an exchange with a deployed node, compared with Flower's own (``python -m``).

One node is Pudica's, behind the gate; the other is a plain SuperNode, connected directly, with an
app that uses only Flower. Both use TLS and keys and the same SuperLink, in turn.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from pudica.simulations.benchmarks.measure import Row, Samples, make_row
from pudica.simulations.benchmarks.table import build_frame
from pudica.simulations.deployment.invitation import Invitation
from pudica.simulations.deployment.kit import Kit
from pudica.simulations.deployment.organiser import OrganiserServer
from pudica.simulations.display import print_frame
from pudica.simulations.programs.bundle import write_bundle
from pudica.simulations.programs.calling import LOOPBACK, SUPERNODE, find_free_port
from pudica.simulations.programs.submission import FlowerRun

# A plain Flower app, and a ServerApp that greets Pudica's nodes. Both time exchanges.
APP = """
import json, time
from pathlib import Path
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

plain_server = ServerApp()
pudica_server = ServerApp()
bare_client = ClientApp()
torch_client = ClientApp()

@bare_client.query("hello")
def bare(message, context):
    return Message(message.content, reply_to=message)

@torch_client.query("hello")
def with_torch(message, context):
    import torch
    return Message(message.content, reply_to=message)

def timed(context, exchange):
    seconds = []
    for _ in range(int(context.run_config["repeats"])):
        start = time.perf_counter()
        exchange()
        seconds.append(time.perf_counter() - start)
    Path(context.run_config["out"]).write_text(json.dumps(seconds))

@plain_server.main()
def plain(grid, context):
    node = int(context.run_config["node"])
    def exchange():
        content = RecordDict({"config": ConfigRecord({"run": "bench"})})
        replies = list(grid.send_and_receive([Message(content, node, "query.hello")]))
        assert len(replies) == 1 and not replies[0].has_error()
    timed(context, exchange)

@pudica_server.main()
def pudica(grid, context):
    from pudica.clients import protocol
    from pudica.strategies.core.cohort import Cohort
    from pudica.strategies.core.reliable_grid import ReliableGrid
    from pudica.strategies.loading import load_experiment
    from pudica.strategies.core.recorder import Recorder
    folder = Path(context.run_config["out"]).with_suffix("")
    recorder = Recorder(folder, load_experiment("themis-digits", []), "deployment")
    nodes = {"node": int(context.run_config["node"])}
    cohort = Cohort(ReliableGrid(grid, patience=60, observer=recorder), recorder, nodes)
    def exchange():
        request = protocol.request({"run": "bench"})
        assert cohort.send_and_receive(
            protocol.HELLO, {"node": request}, lambda _, c: protocol.words_of(c)
        )
    timed(context, exchange)
    recorder.close("done")
"""
APPS = {
    "bare": ("plain", "measuring:plain_server", "measuring:bare_client"),
    "torch": ("plain", "measuring:plain_server", "measuring:torch_client"),
    "pudica": ("gated", "measuring:pudica_server", "pudica.clients.app:app"),
}


def measure_rows(repeats: int, rounds: int) -> list[Row]:
    """Measure exchanges of the three apps in turn."""
    with TemporaryDirectory(prefix="pudica-") as folder, ExitStack() as ends:
        measured = _measure_exchanges(Path(folder), ends, repeats, rounds)
    what = "an exchange with a deployed node, against one of a Flower app that imports"
    ours, torch, bare = (measured[name] for name in ("pudica", "torch", "bare"))
    return [
        make_row("deployed-torch", f"{what} PyTorch", "s", 1.1, Samples(ours, torch)),
        make_row("deployed-bare", f"{what} nothing", "s", None, Samples(ours, bare)),
    ]


def _measure_exchanges(
    folder: Path, ends: ExitStack, repeats: int, rounds: int
) -> dict[str, list[float]]:
    """Return the seconds of exchanges by app, without the first of each run."""
    organiser = OrganiserServer.create(folder / "organiser", LOOPBACK, find_free_port())
    ends.callback(organiser.down)
    organiser.up()
    nodes = dict(_start_nodes(folder, organiser, ends))
    seconds: dict[str, list[float]] = {name: [] for name in APPS}
    for _ in range(rounds):
        for name, (node, *components) in APPS.items():
            seconds[name] += _run_app(organiser, name, nodes[node], components, repeats)[1:]
    return seconds


def _start_nodes(
    folder: Path, organiser: OrganiserServer, ends: ExitStack
) -> Iterator[tuple[str, int]]:
    invitation = Invitation.read(organiser.folder / "invitation.yaml")
    direct = f"{LOOPBACK}:{organiser.config.superlink}"
    for name, server in {"gated": invitation.server, "plain": direct}.items():
        place = folder / name
        kit = Kit.create(place, name, invitation.model_copy(update={"server": server}))
        yield name, organiser.register(kit.public_key, name).node
        ends.callback(kit.down)
        if name == "gated":
            kit.up()
        else:
            arguments = kit.supernode_arguments(f"{LOOPBACK}:{find_free_port()}")
            kit.programs.start("supernode", [*SUPERNODE, *arguments])


def _run_app(
    organiser: OrganiserServer, name: str, node: int, components: list[str], repeats: int
) -> list[float]:
    app, out = organiser.flower / name, organiser.folder / f"{name}.json"
    config = {"node": str(node), "repeats": str(repeats), "out": str(out)}
    write_bundle(app, config, dict(zip(("serverapp", "clientapp"), components, strict=True)))
    (app / "measuring.py").write_text(APP)
    directory = organiser.folder / "runs" / name
    directory.mkdir(parents=True, exist_ok=True)
    check = organiser.programs.check_running
    FlowerRun(organiser.programs.launch, lambda: check("superlink"), app, directory).run()
    seconds: list[float] = json.loads(out.read_text())
    return seconds


def main(
    repeats: Annotated[int, typer.Option(min=2, help="Exchanges of a run.")] = 6,
    rounds: Annotated[int, typer.Option(min=1, help="Runs of each app.")] = 2,
) -> None:
    """Compare exchanges with deployed nodes, on an idle machine."""
    print_frame(
        build_frame(measure_rows(repeats, rounds)), "Exchanges with deployed nodes, medians"
    )


if __name__ == "__main__":
    typer.run(main)
