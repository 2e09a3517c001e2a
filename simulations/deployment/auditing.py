"""A published leaderboard signed by its organiser, and checked by anybody."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pudica.analysis.themis import participant
from pudica.clients.node import NodeConfig
from pudica.clients.participant import SUBMITTED
from pudica.clients.submissions import digest, is_signed, signed, statement
from pudica.clients.vault import check_run
from pudica.models.errors import RequestError
from pudica.models.files import load_tensors, write_atomically
from pudica.simulations.deployment import authority
from pudica.simulations.deployment.checking import CheckResult, run_check
from pudica.simulations.deployment.organiser import SETTINGS
from pudica.strategies.core.cases import MAIN
from pudica.strategies.core.registry import key_fingerprint
from pudica.strategies.core.spreadsheets import read_csv
from pudica.strategies.loading import load_experiment
from pudica.strategies.themis.submissions import FORMAT, MANIFEST, PREDICTIONS, sha256

SIGNATURE = f"{MANIFEST}.sig"
Entry = dict[str, Any]


def publish_manifest(run: Path, folder: Path, published: list[Path]) -> list[Path]:
    """Put a run's manifest beside what was published of it, with hashes of that, and sign it.

    Returns
    -------
    list of Path
        What was written: nothing of a simulation, in which nobody has a key.
    """
    kept = run.absolute() / MANIFEST
    organiser = next((p for p in kept.parents if (p / SETTINGS).is_file()), None)
    if not kept.is_file() or organiser is None:
        return []
    manifest = json.loads(kept.read_text(encoding="utf-8"))
    manifest["published"] = {path.name: sha256(path.read_bytes()) for path in sorted(published)}
    text = (json.dumps(manifest, indent=2, sort_keys=True) + "\n").encode()
    written = [folder / MANIFEST, folder / SIGNATURE]
    write_atomically(written[0], text)
    write_atomically(written[1], authority.sign(organiser / "ca.key", text))
    return written


def verify_leaderboard(
    folder: Path, certificate: Path, node: Path | None = None, run: Path | None = None
) -> list[CheckResult]:
    """Return what is found of a published leaderboard; everything is looked at.

    Parameters
    ----------
    folder : Path
        As it was published.
    certificate : Path
        Of the organiser's authority, as the invitation has it.
    node : Path, optional
        A participant's ``node.yaml``: are these its own submissions?
    run : Path, optional
        The organiser's run: are the submissions of these predictions, and so many right?

    Raises
    ------
    RequestError
        There is no manifest.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        entries: list[Entry] = manifest["submissions"]
    except OSError as error:
        raise RequestError(f"can't read {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise RequestError(f"{path} is no manifest of a competition") from error
    if manifest.get("format") != FORMAT:
        raise RequestError(f"{path} is of another format than {FORMAT}")
    looks: dict[str, Callable[[], str]] = {
        "organiser": lambda: _check_organiser_signature(folder, certificate),
        "files": lambda: _check_published_files(folder, manifest["published"]),
        "participants": lambda: _check_participant_signatures(manifest["run"], entries),
        "leaderboard": lambda: _check_accuracies(folder, manifest),
    }
    if node:
        looks["own submissions"] = lambda: _check_own_submissions(node, manifest["run"], entries)
    if run:
        looks["predictions"] = lambda: _recount_predictions(run, entries)
    return [run_check(what, look) for what, look in looks.items()]


def _check_organiser_signature(folder: Path, certificate: Path) -> str:
    if not (folder / SIGNATURE).is_file():
        raise RequestError(f"there is no {SIGNATURE}")
    text, signature = ((folder / name).read_bytes() for name in (MANIFEST, SIGNATURE))
    if not authority.is_valid_signature(certificate, text, signature):
        raise RequestError(f"{MANIFEST} is not as the owner of {certificate} signed it")
    return f"{MANIFEST} is as the owner of {certificate} signed it"


def _check_published_files(folder: Path, hashes: dict[str, str]) -> str:
    for name, known in hashes.items():
        path = folder / Path(name).name
        if not path.is_file() or sha256(path.read_bytes()) != known:
            raise RequestError(f"{path} is missing, or is not as it was published")
    return f"{', '.join(hashes)} are as they were published"


def _check_participant_signatures(run: str, entries: list[Entry]) -> str:
    _check_duplicates(entries)
    keys: dict[str, str] = {}
    for entry in entries:
        name = entry["participant"]
        text = statement(run, entry["images"], entry["predictions"], entry["count"])
        key = key_fingerprint(entry["public_key"].encode())
        if not is_signed(text, entry["signature"], entry["public_key"]):
            raise RequestError(f"a submission of '{name}' is not signed by its key")
        if keys.setdefault(name, key) != key:
            raise RequestError(f"submissions of '{name}' are signed by different keys")
    told = ", ".join(f"{name} ({key})" for name, key in keys.items())
    return f"{len(entries)} submissions, each signed by its participant: {told}"


def _check_accuracies(folder: Path, manifest: dict[str, Any]) -> str:
    """Compare the official accuracies with what was right of the submissions."""
    boards = sorted(folder.glob("leaderboard*.csv"))
    trained = [e for e in manifest["submissions"] if e["release"] == "trained"]
    if not trained or not boards:
        raise RequestError("there are no submissions, or there is no leaderboard")
    for path in boards:
        case = path.stem.removeprefix("leaderboard").removeprefix("-") or MAIN
        own = [entry for entry in trained if entry["case"] == case]
        _compare_accuracies(path, [e for e in own if e["M"] == own[0]["M"]], manifest["test"])
    return "accuracies are those of the submissions"


def _compare_accuracies(path: Path, entries: list[Entry], test: dict[str, int]) -> None:
    right: defaultdict[str, int] = defaultdict(int)
    for entry in entries:
        right[entry["participant"]] += entry["right"]
    board = read_csv(path, "model").set_index("model")["trained_accuracy"]
    people = {participant(str(name)): value for name, value in board.items()}
    if missing := set(right) - set(people):
        raise RequestError(f"{path.name} has nothing of {', '.join(sorted(missing))}")
    for name, shown in people.items():
        theirs = 100 * right[name] / (test["images"] * test["draws"])
        if abs(theirs - shown) > 1e-6:
            raise RequestError(
                f"'{name}' has {shown:.4f} % in {path.name}, and {theirs:.4f} % by its submissions"
            )


def _check_duplicates(entries: list[Entry]) -> None:
    """See that nobody's submission is there twice, and that all were given the same images."""
    seen: set[tuple[Any, ...]] = set()
    given: dict[tuple[Any, ...], tuple[str, int]] = {}
    for entry in entries:
        sheet = tuple(entry[key] for key in ("case", "release", "M", "draw", "first"))
        own = (*sheet, entry["variant"], entry["participant"])
        if own in seen:
            raise RequestError(f"a submission of '{entry['participant']}' is there twice")
        seen.add(own)
        what = entry["images"], entry["count"]
        if given.setdefault(sheet, what) != what:
            raise RequestError(f"'{entry['participant']}' was given other images than others")


def _check_own_submissions(settings: Path, run: str, entries: list[Entry]) -> str:
    """Compare the manifest with what a participant's vault says that it submitted."""
    config = NodeConfig.read(settings)
    kept = config.vault / check_run(run) / config.name / SUBMITTED
    if not kept.is_file():
        raise RequestError(f"'{config.name}' has submitted nothing in {run}: there is no {kept}")
    own = {(e["images"], e["predictions"]) for e in json.loads(kept.read_bytes())}
    key = signed(config.private_key, "")["public_key"]
    mine = [entry for entry in entries if entry["public_key"] == key]
    theirs = {(e["images"], e["predictions"]) for e in mine}
    if theirs - own:
        raise RequestError(f"'{config.name}' has submitted nothing like what the manifest says")
    if own - theirs:
        raise RequestError(f"{len(own - theirs)} of '{config.name}' are not in the manifest")
    return f"{len(theirs)} of '{config.name}', as its vault has them"


def _recount_predictions(run: Path, entries: list[Entry]) -> str:
    """Compare hashes with the predictions, and count again what is right of them."""
    kept = load_tensors(run / PREDICTIONS)
    if kept is None:
        raise RequestError(f"there is no {run / PREDICTIONS}")
    tensors, _ = kept
    labels = load_experiment(str(run.absolute() / "experiment.yaml"), []).load_data().test.labels
    for number, entry in enumerate(entries):
        predictions = tensors[f"submissions/{number}"].numpy()
        truth = labels[entry["first"] : entry["first"] + len(predictions)]
        if digest(predictions) != entry["predictions"]:
            raise RequestError(f"predictions {number} are not those of '{entry['participant']}'")
        if int((predictions == truth).sum()) != entry["right"]:
            raise RequestError(f"of predictions {number}, others are right than it says")
    return f"{len(entries)} submissions, counted again: as many are right"
