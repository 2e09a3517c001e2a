"""Signing a published leaderboard as its organiser, and verifying it as anybody."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pudica.analysis.themis import participant_name
from pudica.clients.runtime.node import NodeConfig
from pudica.clients.runtime.vault import check_run
from pudica.clients.themis.assigned import SUBMITTED
from pudica.clients.themis.submissions import build_statement, digest, is_signed, sign_with_file
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
    """Write and sign the manifest of a published leaderboard, with hashes of its files.

    Returns
    -------
    list of Path
        The files written; none for a simulation, in which nobody has a key.
    """
    source = run.absolute() / MANIFEST
    organiser = next((p for p in source.parents if (p / SETTINGS).is_file()), None)
    if not source.is_file() or organiser is None:
        return []
    manifest = json.loads(source.read_text(encoding="utf-8"))
    manifest["published"] = {path.name: sha256(path.read_bytes()) for path in sorted(published)}
    text = (json.dumps(manifest, indent=2, sort_keys=True) + "\n").encode()
    written = [folder / MANIFEST, folder / SIGNATURE]
    write_atomically(written[0], text)
    write_atomically(written[1], authority.sign(organiser / "ca.key", text))
    return written


def verify_leaderboard(
    folder: Path, certificate: Path, node: Path | None = None, run: Path | None = None
) -> list[CheckResult]:
    """Verify a published leaderboard; run all checks, even if some fail.

    Parameters
    ----------
    folder : Path
        The folder as it was published.
    certificate : Path
        Certificate of the organiser's authority, from the invitation.
    node : Path, optional
        A participant's ``node.yaml``, to compare its submissions with its vault.
    run : Path, optional
        The organiser's run, to compare submissions with predictions and recount correct ones.

    Raises
    ------
    RequestError
        If there is no manifest.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        entries: list[Entry] = manifest["submissions"]
    except OSError as error:
        raise RequestError(f"can't read {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise RequestError(f"{path} is not a manifest of a competition") from error
    if manifest.get("format") != FORMAT:
        raise RequestError(f"{path} is not of the format {FORMAT}")
    checks: dict[str, Callable[[], str]] = {
        "organiser": lambda: _check_organiser_signature(folder, certificate),
        "files": lambda: _check_published_files(folder, manifest["published"]),
        "participants": lambda: _check_participant_signatures(manifest["run"], entries),
        "leaderboard": lambda: _check_accuracies(folder, manifest),
    }
    if node:
        checks["own submissions"] = lambda: _check_own_submissions(node, manifest["run"], entries)
    if run:
        checks["predictions"] = lambda: _recount_predictions(run, entries)
    return [run_check(name, check) for name, check in checks.items()]


def _check_organiser_signature(folder: Path, certificate: Path) -> str:
    if not (folder / SIGNATURE).is_file():
        raise RequestError(f"there is no {SIGNATURE}")
    text, signature = ((folder / name).read_bytes() for name in (MANIFEST, SIGNATURE))
    if not authority.is_valid_signature(certificate, text, signature):
        raise RequestError(
            f"{MANIFEST} was not signed by the owner of {certificate}, or was changed"
        )
    return f"{MANIFEST} was signed by the owner of {certificate}"


def _check_published_files(folder: Path, hashes: dict[str, str]) -> str:
    for name, known in hashes.items():
        path = folder / Path(name).name
        if not path.is_file() or sha256(path.read_bytes()) != known:
            raise RequestError(f"{path} is missing, or was changed since it was published")
    return f"{', '.join(hashes)} are unchanged since they were published"


def _check_participant_signatures(run: str, entries: list[Entry]) -> str:
    _check_duplicates(entries)
    keys: dict[str, str] = {}
    for entry in entries:
        name = entry["participant"]
        text = build_statement(run, entry["images"], entry["predictions"], entry["count"])
        key = key_fingerprint(entry["public_key"].encode())
        if not is_signed(text, entry["signature"], entry["public_key"]):
            raise RequestError(f"a submission of '{name}' is not signed by its key")
        if keys.setdefault(name, key) != key:
            raise RequestError(f"submissions of '{name}' are signed by different keys")
    signers = ", ".join(f"{name} ({key})" for name, key in keys.items())
    return f"{len(entries)} submissions, each signed by its participant: {signers}"


def _check_accuracies(folder: Path, manifest: dict[str, Any]) -> str:
    """Compare the official accuracies with the submissions."""
    boards = sorted(folder.glob("leaderboard*.csv"))
    trained = [e for e in manifest["submissions"] if e["release"] == "trained"]
    if not trained or not boards:
        raise RequestError("there are no submissions, or there is no leaderboard")
    for path in boards:
        case = path.stem.removeprefix("leaderboard").removeprefix("-") or MAIN
        case_entries = [entry for entry in trained if entry["case"] == case]
        _compare_accuracies(
            path, [e for e in case_entries if e["M"] == case_entries[0]["M"]], manifest["test"]
        )
    return "accuracies match the submissions"


def _compare_accuracies(path: Path, entries: list[Entry], test: dict[str, int]) -> None:
    correct: defaultdict[str, int] = defaultdict(int)
    for entry in entries:
        correct[entry["participant"]] += entry["right"]
    board = read_csv(path, "model").set_index("model")["trained_accuracy"]
    people = {participant_name(str(name)): value for name, value in board.items()}
    if missing := set(correct) - set(people):
        raise RequestError(f"{path.name} does not contain {', '.join(sorted(missing))}")
    for name, shown in people.items():
        submitted = 100 * correct[name] / (test["images"] * test["draws"])
        if abs(submitted - shown) > 1e-6:
            raise RequestError(
                f"'{name}' has {shown:.4f} % in {path.name}, and {submitted:.4f} % by its "
                "submissions"
            )


def _check_duplicates(entries: list[Entry]) -> None:
    """Check that there are no duplicate submissions, and that all were made for the same images."""
    seen: set[tuple[Any, ...]] = set()
    given: dict[tuple[Any, ...], tuple[str, int]] = {}
    for entry in entries:
        sheet = tuple(entry[key] for key in ("case", "release", "M", "draw", "first"))
        own = (*sheet, entry["variant"], entry["participant"])
        if own in seen:
            raise RequestError(f"there are two copies of a submission of '{entry['participant']}'")
        seen.add(own)
        what = entry["images"], entry["count"]
        if given.setdefault(sheet, what) != what:
            raise RequestError(f"'{entry['participant']}' was given different images than others")


def _check_own_submissions(settings: Path, run: str, entries: list[Entry]) -> str:
    """Compare the manifest with the submissions in a participant's vault."""
    config = NodeConfig.read(settings)
    file = config.vault / check_run(run) / config.name / SUBMITTED
    if not file.is_file():
        raise RequestError(f"'{config.name}' has submitted nothing in {run}: there is no {file}")
    in_vault = {(e["images"], e["predictions"]) for e in json.loads(file.read_bytes())}
    key = sign_with_file(config.private_key, "")["public_key"]
    signed_entries = [entry for entry in entries if entry["public_key"] == key]
    in_manifest = {(e["images"], e["predictions"]) for e in signed_entries}
    if in_manifest - in_vault:
        raise RequestError(f"the manifest has submissions that '{config.name}' did not make")
    if in_vault - in_manifest:
        raise RequestError(
            f"{len(in_vault - in_manifest)} submissions of '{config.name}' are not in the manifest"
        )
    return f"{len(in_manifest)} submissions of '{config.name}', as in its vault"


def _recount_predictions(run: Path, entries: list[Entry]) -> str:
    """Compare hashes with the predictions, and recount the correct ones."""
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
            raise RequestError(
                f"of predictions {number}, not as many are correct as the manifest says"
            )
    return f"{len(entries)} submissions recounted: as many are correct as the manifest says"
