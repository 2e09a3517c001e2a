"""A competition over TLS whose processes are killed again and again.

``python -m pudica.simulations.benchmarks.soak --nodes 20 --epochs 6 --every 30`` creates an
organiser and nodes on this machine, kills one of their processes every 30 seconds (SIGKILL),
restarts it as its owner would, and compares the results with those of a single process.
"""

from __future__ import annotations

import json
import random
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Annotated, NamedTuple

import pandas as pd
import psutil
import typer

from pudica.models.errors import RequestError
from pudica.models.files import write_atomically
from pudica.simulations.deployment.kit import Kit
from pudica.simulations.deployment.place import ProgramFolder
from pudica.simulations.deployment.trial import Trial, count_differences
from pudica.simulations.display import print_frame
from pudica.simulations.programs.calling import POLL_INTERVAL
from pudica.simulations.programs.submission import FlowerRunFailed
from pudica.strategies.core.experiment import Experiment

EXPERIMENT = "themis-digits"
MODELS = ("softmax", "mlp")
ORGANISER = "the organiser"
# Twenty programs that poll ten times a second would leave two cores no time for work.
SLOW_POLLING = {POLL_INTERVAL: "1"}
ANSWER_LINE = "Sent successfully"
POLL_SECONDS = 0.5
ATTEMPTS = 100
SERVER_SECONDS = 300.0


@dataclass
class Kill:
    """A kill, and how the run recovered.

    Attributes
    ----------
    at : float
        Seconds since the start of the run.
    what, of : str
        Kind of program, and its owner.
    back : float
        Seconds until it was restarted; NaN for a process that handles one message, which is not.
    answered : float
        Seconds until a node's next answer reached the server; that node's own if the program was a
        node's. NaN if the run ended before.
    """

    at: float
    what: str
    of: str
    back: float = float("nan")
    answered: float = float("nan")


class Victim(NamedTuple):
    """What can be killed: its kind, its owner, the folder that restarts it, and its processes."""

    what: str
    of: str
    place: ProgramFolder | None
    family: list[psutil.Process]


class AnswerCounter:
    """Counts the answers that each node has sent to the server, according to the nodes' logs.

    Parameters
    ----------
    trial : Trial
    """

    def __init__(self, trial: Trial) -> None:
        self._trial = trial
        self._seen: Counter[str] = Counter()
        self._total: Counter[str] = Counter()

    def count(self) -> Counter[str]:
        """Return the number of answers by node so far; a log starts anew with its node."""
        for name, kit in self._trial.kits.items():
            now = kit.programs.read_log("supernode").count(ANSWER_LINE)
            self._total[name] += now - self._seen[name] if now >= self._seen[name] else now
            self._seen[name] = now
        return Counter(self._total)


class Soak:
    """Runs a deployment, kills its processes, and restarts them.

    Parameters
    ----------
    trial : Trial
        A trial with all programs running.
    every : float
        Seconds between kills.
    seed : int
    """

    def __init__(self, trial: Trial, every: float, seed: int) -> None:
        self.trial = trial
        self.every = every
        self.kills: list[Kill] = []
        self.resumed = self.ended = 0
        self.reasons: list[str] = []
        self._random = random.Random(seed)
        self._answers = AnswerCounter(trial)
        self._began = time.monotonic()
        self._stopped = threading.Event()
        # Whoever looks after a machine does one thing at a time.
        self._locks = {name: threading.Lock() for name in (ORGANISER, *trial.kits)}

    def run(self, overrides: list[str]) -> Path:
        """Run to the end, resuming as often as the run is stopped; return its directory."""
        experiment, directory = self.trial.organiser.prepare(EXPERIMENT, overrides, None)
        workers = [threading.Thread(target=work) for work in (self._kill, self._watch)]
        self._began = time.monotonic()
        for worker in workers:
            worker.start()
        try:
            self._run(experiment, directory)
        finally:
            self._stopped.set()
            for worker in workers:
                worker.join()
        return directory

    @property
    def elapsed(self) -> float:
        """Seconds since the start of the run."""
        return time.monotonic() - self._began

    def _run(self, experiment: Experiment, directory: Path) -> None:
        for _ in range(ATTEMPTS):
            try:
                self.trial.organiser.run(experiment, directory)
                return
            except (FlowerRunFailed, RequestError) as error:
                self._note(f"stopped: {error}")
            experiment, directory = self._prepare_resume(directory)
            self.resumed += 1
        raise FlowerRunFailed(f"stopped more than {ATTEMPTS} times")

    def _prepare_resume(self, directory: Path) -> tuple[Experiment, Path]:
        """Prepare to resume a run, once the server is up again."""
        deadline = time.monotonic() + SERVER_SECONDS
        while True:
            try:
                return self.trial.organiser.prepare(None, [], directory)
            except RequestError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(POLL_SECONDS)

    def _note(self, text: str) -> None:
        line = f"{self.elapsed:7.1f} s  {text}"
        self.reasons.append(line)
        typer.echo(line, err=True)

    # -------------------------------------------------------------------------- killing

    def _kill(self) -> None:
        """Kill something at regular intervals, and restart it."""
        with ThreadPoolExecutor() as people:
            while not self._stopped.wait(self.every - self.elapsed % self.every):
                self._restart_ended_nodes()
                victim = self._random.choice(self._list_victims())
                kill = Kill(round(self.elapsed, 1), victim.what, victim.of)
                self.kills.append(kill)
                self._note(f"killed: {victim.what} of {victim.of}")
                _kill_processes(victim.family)
                people.submit(self._restart_victim, kill, victim)

    def _restart_victim(self, kill: Kill, victim: Victim) -> None:
        if victim.place is None:
            return
        try:
            with self._locks[victim.of]:
                victim.place.up()
        except RequestError as error:
            self._note(f"{victim.of} does not restart: {error}")
        else:
            kill.back = round(self.elapsed - kill.at, 1)

    def _restart_ended_nodes(self) -> None:
        """Restart nodes that ended without being killed."""
        for name, kit in self.trial.kits.items():
            lock = self._locks[name]
            if lock.acquire(blocking=False):
                try:
                    self._restart_node(name, kit)
                finally:
                    lock.release()

    def _restart_node(self, name: str, kit: Kit) -> None:
        ended = [program for program in kit.PROGRAMS if kit.programs.find_process(program) is None]
        if ended:
            logs = [kit.programs.read_log_tail(program) for program in ended]
            self._note(f"of {name} had ended: {', '.join(ended)}\n" + "\n".join(logs))
            self.ended += 1
            kit.up()

    def _list_victims(self) -> list[Victim]:
        """Return all running programs; each is equally likely to be killed."""
        organiser, victims = self.trial.organiser, []
        for name, kit in self.trial.kits.items():
            programs = [kit.programs.find_process(program) for program in kit.PROGRAMS]
            running = [process for process in programs if process]
            processes = [
                *running,
                *(child for process in running for child in _list_children(process)),
            ]
            victims += [Victim("node", name, kit, processes)] if running else []
            if app := programs[-1]:
                at_work = _list_children(app)
                victims.append(Victim("clientapp", name, kit, [app, *at_work]))
                victims += [Victim("answer", name, None, [process]) for process in at_work]
        for program in organiser.PROGRAMS:
            if process := organiser.programs.find_process(program):
                victims.append(Victim(program, ORGANISER, organiser, [process]))
        superlink = organiser.programs.find_process("superlink")
        apps = _find_program("flwr-serverapp", _list_children(superlink) if superlink else [])
        return [*victims, *(Victim("serverapp", ORGANISER, None, [app]) for app in apps)]

    # ------------------------------------------------------------------------- watching

    def _watch(self) -> None:
        """Record when nodes answer again after a kill."""
        before = self._answers.count()
        waiting: dict[int, int] = {}  # by kill, how often the run had been resumed when it happened
        while not self._stopped.wait(POLL_SECONDS):
            after = self._answers.count()
            answering = {name for name in after if after[name] > before[name]}
            before = after
            for number, kill in enumerate(self.kills):
                if kill.answered == kill.answered:
                    continue
                resumed = waiting.setdefault(number, self.resumed)
                if _has_recovered(kill, answering, self.resumed > resumed):
                    kill.answered = round(self.elapsed - kill.at, 1)


def _has_recovered(kill: Kill, answering: set[str], resumed: bool) -> bool:
    """Return whether the answers since a kill show that the run has recovered from it."""
    if kill.what in ("node", "clientapp", "answer"):
        return kill.of in answering
    return bool(answering) and (resumed or kill.what == "gate")


def _list_children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _find_program(name: str, processes: list[psutil.Process]) -> list[psutil.Process]:
    """Return the processes of one of Flower's programs."""
    matching = []
    for process in processes:
        try:
            if any(Path(word).name == name for word in process.cmdline()[:2]):
                matching.append(process)
        except psutil.Error:  # it has ended
            continue
    return matching


def _kill_processes(family: list[psutil.Process]) -> None:
    """Kill processes, and wait until they are gone."""
    for process in family:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(family, timeout=30)


# ------------------------------------------------------------------------------ report


def build_report(soak: Soak, directory: Path, differing: int, seconds: float) -> dict[str, object]:
    """Return the results of the soak as a dict."""
    ended = json.loads((directory / "run.json").read_text())
    log = directory / "events.log"
    events = log.read_text(encoding="utf-8") if log.exists() else ""
    kinds = Counter(kill.what for kill in soak.kills)
    waits = {
        what: [k.answered for k in soak.kills if k.what == what and k.answered == k.answered]
        for what in kinds
    }
    every = [wait for some in waits.values() for wait in some]
    return {
        "status": ended["status"],
        "nodes": len(soak.trial.kits),
        "exchanges": sum(kind["count"] for kind in ended["exchanges"].values()),
        "kills": len(soak.kills),
        **{f"kills: {what}": count for what, count in sorted(kinds.items())},
        "brought back": sum(kill.back == kill.back for kill in soak.kills),
        "nodes that ended by themselves": soak.ended,
        "resumed": soak.resumed,
        "asked again": events.count(" asked again: "),
        "exchanges lost": events.count(" dropout: "),
        "rows that differ": differing,
        "seconds": round(seconds),
        **{
            f"seconds to answer: {what}": _format_spread(some)
            for what, some in sorted(waits.items())
        },
        "seconds to answer": _format_spread(every),
    }


def _format_spread(values: list[float]) -> str:
    if not values:
        return "-"
    return f"median {median(values):.0f}, max {max(values):.0f} of {len(values)}"


def build_overrides(nodes: int, epochs: int) -> list[str]:
    """Return the experiment's overrides: many small participants, and no secret randomness."""
    models = [
        {"model": MODELS[number % len(MODELS)], "name": f"node-{number + 1:02}"}
        for number in range(nodes)
    ]
    return [
        f"participants={json.dumps(models)}",
        *("training.epochs=2", f"themis.epochs={epochs}", "themis.examiner=null"),
        *("themis.release.secret=false", "client.threads=1"),
    ]


def main(
    nodes: Annotated[int, typer.Option(min=1)] = 20,
    epochs: Annotated[int, typer.Option(min=1, help="Of the noise generator.")] = 6,
    every: Annotated[float, typer.Option(min=1, help="Seconds between kills.")] = 30.0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the choice of victims.")] = 0,
    out: Annotated[Path, typer.Option(help="A new folder for all of it.")] = Path("soak"),
) -> None:
    """Run a competition while killing and restarting its processes, and compare the results."""
    from pudica.strategies.loading import load_experiment

    overrides = build_overrides(nodes, epochs)
    experiment = load_experiment(EXPERIMENT, overrides)
    with Trial(out.absolute(), environment=SLOW_POLLING) as trial:
        trial.up(experiment.names(), experiment.system)
        soak = Soak(trial, every, seed)
        began = time.monotonic()
        directory = soak.run(overrides)
        seconds = time.monotonic() - began
    shown = build_report(
        soak, directory, count_differences(directory, out.absolute() / "here"), seconds
    )
    frame = pd.DataFrame({"what": list(shown), "": list(map(str, shown.values()))})
    print_frame(frame, "Soak")
    details = {**shown, "log": soak.reasons, "each kill": [asdict(kill) for kill in soak.kills]}
    write_atomically(out / "soak.json", json.dumps(details, indent=2).encode())
    intact = not (shown["exchanges lost"] or shown["rows that differ"])
    sys.exit(0 if intact and shown["status"] == "done" else 1)


if __name__ == "__main__":
    typer.run(main)
