"""``pudica deploy`` and ``pudica node``."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pudica.simulations.competition import publish_drafts
from pudica.simulations.console import (
    FAILED,
    exit_on_request_error,
    explain_failures,
    print_check_results,
    print_message,
    print_results,
    shorten_path,
)

if TYPE_CHECKING:
    from pudica.simulations.deployment.kit import Kit
    from pudica.simulations.deployment.organiser import OrganiserServer

# Heavy imports stay inside the commands: `pudica --help` is instant.

deploy_app = typer.Typer(
    no_args_is_help=True,
    help="Work with real participants: an organiser's server and participants' nodes.",
)
node_app = typer.Typer(no_args_is_help=True, help="Look after a participant's node.")

Folder = Annotated[Path, typer.Option("--folder", help="The organiser's, or a node's.")]
OrganiserFolder = Annotated[Path, typer.Option("--folder", help="The organiser's.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a setting; may be repeated."),
]
HERE = Path()


@deploy_app.command("init")
def init(
    folder: Annotated[Path, typer.Argument(help="A new folder, for the organiser alone.")],
    host: Annotated[
        str, typer.Option(help="Name or address by which participants reach this machine.")
    ],
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8100,
) -> None:
    """Create an organiser's folder: certificates, settings, and an invitation to send."""
    with exit_on_request_error():
        from pudica.simulations.deployment.organiser import OrganiserServer

        organiser = OrganiserServer.create(folder, host, port)
    short = shorten_path(organiser.folder)
    typer.echo(f"{short / 'invitation.yaml'}  send this to participants, unchanged")
    typer.echo(f"{short / 'ca.key'}  your authority's key: keep it to yourself")
    typer.echo(f"next: pudica deploy up --folder {shlex.quote(str(short))}")


@deploy_app.command("node")
def node(
    name: Annotated[str, typer.Argument(help="The node's name, which others will see.")],
    invitation: Annotated[Path, typer.Option(help="The organiser's invitation.yaml.")],
    folder: Annotated[Path | None, typer.Option(help="A new folder; by default NAME.")] = None,
    system: Annotated[str, typer.Option(help="themis, split, dlmt or facemix.")] = "themis",
) -> None:
    """Create a participant's folder: a node's key, its public half to send, and node.yaml."""
    with exit_on_request_error():
        from pudica.simulations.deployment.authority import compute_fingerprint
        from pudica.simulations.deployment.invitation import Invitation
        from pudica.simulations.deployment.kit import Kit

        kit = Kit.create(folder or Path(name), name, Invitation.read(invitation), system)
    place = shlex.quote(str(shorten_path(kit.folder / "node.yaml")))
    fingerprint = compute_fingerprint(kit.public_key)
    typer.echo(
        f"{shorten_path(kit.public_key)}  send this to the organiser; its fingerprint: "
        f"{fingerprint}"
    )
    typer.echo(f"{place}  configure your node here, then: pudica node check {place}")


@deploy_app.command("register")
def register(
    public_key: Annotated[Path, typer.Argument(help="NAME.pub, as the participant sent it.")],
    name: Annotated[str | None, typer.Option(help="By default the file's name.")] = None,
    folder: OrganiserFolder = HERE,
) -> None:
    """Register a participant's node, so that it can take part."""
    with exit_on_request_error():
        from pudica.simulations.deployment.organiser import OrganiserServer

        entry = OrganiserServer(folder, print_message).register(public_key, name or public_key.stem)
    typer.echo(f"'{entry.name}' can take part, with the key {entry.fingerprint}")


@deploy_app.command("remove")
def remove(
    name: Annotated[str, typer.Argument(help="As `pudica deploy status` shows it.")],
    folder: OrganiserFolder = HERE,
) -> None:
    """Remove a participant's node, so that it can no longer take part; its submissions stay."""
    with exit_on_request_error():
        from pudica.simulations.deployment.organiser import OrganiserServer

        entry = OrganiserServer(folder, print_message).remove(name)
    typer.echo(f"'{entry.name}' can no longer take part; its key was {entry.fingerprint}")


@deploy_app.command("up")
def up(folder: Folder = HERE) -> None:
    """Start the organiser's server or a node, depending on the folder."""
    with exit_on_request_error():
        place = _open_folder(folder)
        place.up()
        for name in place.PROGRAMS:
            process = place.programs.find_process(name)
            log = shorten_path(place.programs.log_file(name))
            typer.echo(f"{name}: process {process.pid if process else '?'}, log {log}")


@deploy_app.command("down")
def down(folder: Folder = HERE) -> None:
    """Stop what `up` started in this folder; nothing is lost."""
    with exit_on_request_error():
        stopped = _open_folder(folder).down()
    typer.echo(f"stopped: {', '.join(stopped)}" if stopped else "nothing was running here")


@deploy_app.command("status")
def status(folder: Folder = HERE) -> None:
    """Show which programs are running, and which nodes are registered and online."""
    with exit_on_request_error():
        from pudica.simulations.deployment.organiser import OrganiserServer

        place = _open_folder(folder)
        for name in place.PROGRAMS:
            process = place.programs.find_process(name)
            typer.echo(f"{name}: {f'process {process.pid}' if process else 'not running'}")
        if not isinstance(place, OrganiserServer):
            return
        online = place.query_node_statuses() if place.is_up() else {}
        for entry in place.nodes:
            typer.echo(
                f"  {entry.name:24} {online.get(entry.name, '?'):12} key {entry.fingerprint}  "
                f"since {entry.since}"
            )


@deploy_app.command("run")
def run(
    experiment: Annotated[
        str | None, typer.Argument(help="A name from `pudica list`, or a YAML file.")
    ] = None,
    set_: Overrides = None,
    folder: OrganiserFolder = HERE,
    resume: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Resume a run that was stopped.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print only the run's directory.")] = False,
) -> None:
    """Run an experiment with the registered nodes."""
    with exit_on_request_error():
        from pudica.simulations.deployment.organiser import OrganiserServer
        from pudica.simulations.progress import watch

        organiser = OrganiserServer(folder, (lambda _: None) if quiet else print_message)
        prepared, directory = organiser.prepare(experiment, set_ or [], resume)
        options = f"--folder {shlex.quote(str(folder))}" if folder != HERE else ""
        watcher, publisher = watch(directory, quiet), publish_drafts(directory)
        with explain_failures(directory, "pudica deploy run", options), watcher, publisher:
            organiser.run(prepared, directory)
    print_results(directory, quiet)
    typer.echo(directory)


@deploy_app.command("try")
def attempt(
    experiment: Annotated[str, typer.Argument(help="A name from `pudica list`, or a YAML file.")],
    nodes: Annotated[
        int, typer.Option(min=1, help="Number of nodes, the first of the experiment.")
    ] = 3,
    set_: Overrides = None,
    out: Annotated[Path, typer.Option(help="A new folder for all of it.")] = Path("trial"),
    quiet: Annotated[bool, typer.Option("--quiet", help="Print only the run's directory.")] = False,
) -> None:
    """Try a deployment on this machine, over loopback: server, gate, nodes, and a run."""
    with exit_on_request_error():
        from pudica.simulations.deployment import trial
        from pudica.simulations.programs.submission import FlowerRunFailed

        notify = (lambda _: None) if quiet else print_message
        try:
            directory = trial.run_trial(experiment, set_ or [], nodes, out.absolute(), notify)
        except FlowerRunFailed as error:
            print_message(
                f"error: {error}\nlogs are in {shorten_path(out.absolute())}, in flower/work of "
                "each folder"
            )
            raise typer.Exit(FAILED) from None
    print_results(directory, quiet)
    typer.echo(directory)


@node_app.command("check")
def check(
    settings: Annotated[Path, typer.Argument(help="node.yaml")] = Path("node.yaml"),
    classes: Annotated[
        str | None, typer.Option(help="The run's classes: a,b,c, or a file, one name a line.")
    ] = None,
    attributes: Annotated[
        str | None, typer.Option(help="The run's attributes (FaceMix), likewise.")
    ] = None,
) -> None:
    """Check a node's settings, keys, server, data and model before a competition begins."""
    with exit_on_request_error():
        from pudica.clients.runtime.node import NodeConfig
        from pudica.simulations.deployment import budgeting, checking, vocabulary
        from pudica.simulations.display import print_frame

        expected = vocabulary.Expected.read(classes, attributes)
        config = NodeConfig.read(settings.absolute())
        findings = checking.check_node(settings.absolute(), expected)
        lines = budgeting.describe_promises(config)
        tables = vocabulary.build_tables(config, expected)
    typer.echo("\n".join(["what this node releases at most, and what it refuses", *lines, ""]))
    for table in tables:
        print_frame(table.frame, table.title)
    print_check_results(findings)


@node_app.command("budget")
def budget(
    settings: Annotated[Path, typer.Argument(help="node.yaml")] = Path("node.yaml"),
) -> None:
    """Show what this node has released in all runs, what that cost, and what is left."""
    with exit_on_request_error():
        from pudica.clients.runtime.node import NodeConfig
        from pudica.simulations.deployment import budgeting
        from pudica.simulations.display import print_frame

        config = NodeConfig.read(settings.absolute())
        entries = budgeting.read_entries(config)
        lines = budgeting.describe_balance(config, entries)
    if entries:
        print_frame(budgeting.build_table(entries), f"Releases of {config.name}, in all runs")
    typer.echo("\n".join(lines))


def _open_folder(folder: Path) -> OrganiserServer | Kit:
    """Open an organiser's or a node's folder."""
    from pudica.simulations.deployment import kit, organiser

    if (folder / kit.SETTINGS).is_file():
        return kit.Kit(folder, print_message)
    return organiser.OrganiserServer(folder, print_message)
