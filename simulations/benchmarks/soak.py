"""A competition over TLS in which something is killed again and again.

``python -m pudica.simulations.benchmarks.soak --nodes 20 --epochs 6 --every 30`` makes an
organiser and nodes on this machine, kills one of their processes every so many seconds (SIGKILL),
brings it back as whoever looks after it would, and compares the table with that of one process.
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
# Twenty programs that look for work ten times a second would leave two cores no time for it.
SLOW_POLLING = {POLL_INTERVAL: "1"}
ANSWER_LINE = "Sent successfully"
POLL_SECONDS = 0.5
ATTEMPTS = 100
SERVER_SECONDS = 300.0


@dataclass
class Kill:
    """Something that was killed.

    Attributes
    ----------
    at : float
        Seconds after the run's beginning.
    what, of : str
        Which kind of program, and whose.
    back : float
        Seconds until it was there again; an answer that is being worked at is not brought back.
    answered : float
        Seconds until a node's next answer had reached the server; of a node, or what is a node's,
        its own. Not a number, if the run ended before.
    """

    at: float
    what: str
    of: str
    back: float = float("nan")
    answered: float = float("nan")


class Victim(NamedTuple):
    """What may be killed: its kind, whose it is, who brings it back, and its processes."""

    what: str
    of: str
    place: ProgramFolder | None
    family: list[psutil.Process]


class AnswerCounter:
    """How many answers each node has brought to the server, as the nodes' logs say.

    Parameters
    ----------
    trial : Trial
    """

    def __init__(self, trial: Trial) -> None:
        self._trial = trial
        self._seen: Counter[str] = Counter()
        self._total: Counter[str] = Counter()

    def count(self) -> Counter[str]:
        """Return by node how many there were so far; a log begins anew with its node."""
        for name, kit in self._trial.kits.items():
            now = kit.programs.read_log("supernode").count(ANSWER_LINE)
            self._total[name] += now - self._seen[name] if now >= self._seen[name] else now
            self._seen[name] = now
        return Counter(self._total)


class Soak:
    """A deployed run, whoever kills it, and whoever brings it back.

    Parameters
    ----------
    trial : Trial
        With everything up.
    every : float
        Seconds from kill to kill.
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
        # Who looks after a machine does one thing at a time.
        self._locks = {name: threading.Lock() for name in (ORGANISER, *trial.kits)}

    def run(self, overrides: list[str]) -> Path:
        """Run to the end, and go on with it as often as it is stopped; return its directory."""
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
        """Seconds since the run's beginning."""
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
        """Return a run that was stopped, once the server is there to go on with it."""
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
        """Kill something every so often, and bring it back."""
        with ThreadPoolExecutor() as people:
            while not self._stopped.wait(self.every - self.elapsed % self.every):
                self._restart_ended_nodes()
                victim = self._random.choice(self._list_victims())
                kill = Kill(round(self.elapsed, 1), victim.what, victim.of)
                self.kills.append(kill)
                self._note(f"killed: {victim.what} of {victim.of}")
                _kill_processes(victim.family)
                people.submit(self._bring_back, kill, victim)

    def _bring_back(self, kill: Kill, victim: Victim) -> None:
        if victim.place is None:
            return
        try:
            with self._locks[victim.of]:
                victim.place.up()
        except RequestError as error:
            self._note(f"{victim.of} does not come back: {error}")
        else:
            kill.back = round(self.elapsed - kill.at, 1)

    def _restart_ended_nodes(self) -> None:
        """Bring back nodes that ended though nobody had killed them."""
        for name, kit in self.trial.kits.items():
            hands = self._locks[name]
            if hands.acquire(blocking=False):
                try:
                    self._restart_node(name, kit)
                finally:
                    hands.release()

    def _restart_node(self, name: str, kit: Kit) -> None:
        ended = [program for program in kit.PROGRAMS if kit.programs.find_process(program) is None]
        if ended:
            said = [kit.programs.read_log_tail(program) for program in ended]
            self._note(f"of {name} had ended: {', '.join(ended)}\n" + "\n".join(said))
            self.ended += 1
            kit.up()

    def _list_victims(self) -> list[Victim]:
        """Return all programs that are there; each is as likely to be killed as any other."""
        organiser, found = self.trial.organiser, []
        for name, kit in self.trial.kits.items():
            programs = [kit.programs.find_process(program) for program in kit.PROGRAMS]
            there = [process for process in programs if process]
            whole = [*there, *(below for process in there for below in _list_children(process))]
            found += [Victim("node", name, kit, whole)] if there else []
            if app := programs[-1]:
                at_work = _list_children(app)
                found.append(Victim("clientapp", name, kit, [app, *at_work]))
                found += [Victim("answer", name, None, [process]) for process in at_work]
        for program in organiser.PROGRAMS:
            if process := organiser.programs.find_process(program):
                found.append(Victim(program, ORGANISER, organiser, [process]))
        superlink = organiser.programs.find_process("superlink")
        apps = _find_program("flwr-serverapp", _list_children(superlink) if superlink else [])
        return [*found, *(Victim("serverapp", ORGANISER, None, [app]) for app in apps)]

    # ------------------------------------------------------------------------- watching

    def _watch(self) -> None:
        """Note when nodes answer again after a kill."""
        before = self._answers.count()
        waiting: dict[int, int] = {}  # since how many resumptions a kill waits
        while not self._stopped.wait(POLL_SECONDS):
            after = self._answers.count()
            came = {name for name in after if after[name] > before[name]}
            before = after
            for number, kill in enumerate(self.kills):
                if kill.answered == kill.answered:
                    continue
                resumed = waiting.setdefault(number, self.resumed)
                if _is_answered(kill, came, self.resumed > resumed):
                    kill.answered = round(self.elapsed - kill.at, 1)


def _is_answered(kill: Kill, came: set[str], resumed: bool) -> bool:
    """Tell whether what came shows that the run goes on after a kill."""
    if kill.what in ("node", "clientapp", "answer"):
        return kill.of in came
    return bool(came) and (resumed or kill.what == "gate")


def _list_children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _find_program(name: str, processes: list[psutil.Process]) -> list[psutil.Process]:
    """Return the processes of a program of Flower's."""
    found = []
    for process in processes:
        try:
            if any(Path(word).name == name for word in process.cmdline()[:2]):
                found.append(process)
        except psutil.Error:  # it has ended
            continue
    return found


def _kill_processes(family: list[psutil.Process]) -> None:
    """Kill processes; wait until they are gone, or their parent would seem to be there still."""
    for process in family:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(family, timeout=30)


# ------------------------------------------------------------------------------ the table


def build_report(soak: Soak, directory: Path, differing: int, seconds: float) -> dict[str, object]:
    """Return what the soak has shown, as one table."""
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
    """Return the experiment's overrides: many small participants, and seeds for secrets."""
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
    every: Annotated[float, typer.Option(min=1, help="Seconds from kill to kill.")] = 30.0,
    seed: Annotated[int, typer.Option(min=0, help="Of who is killed.")] = 0,
    out: Annotated[Path, typer.Option(help="A new folder for all of it.")] = Path("soak"),
) -> None:
    """Kill, bring back, and compare."""
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
    told = {**shown, "log": soak.reasons, "each kill": [asdict(kill) for kill in soak.kills]}
    write_atomically(out / "soak.json", json.dumps(told, indent=2).encode())
    held = not (shown["exchanges lost"] or shown["rows that differ"])
    sys.exit(0 if held and shown["status"] == "done" else 1)


if __name__ == "__main__":
    typer.run(main)
