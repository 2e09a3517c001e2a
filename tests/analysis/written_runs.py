"""Run directories as a competition leaves them, written by hand."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

Accuracies = Mapping[str, Mapping[str, float]]


def participants_of(names: list[str]) -> list[dict[str, Any]]:
    return [{"name": name, "model": name.lower()} for name in names]


def row(stage: str, metric: str, value: float, **rest: Any) -> dict[str, Any]:
    base = {"stage": stage, "round": 0, "node": "organiser", "metric": metric, "value": value}
    return {**base, **rest}


def accuracy_rows(
    release: str, accuracies: Mapping[str, float], M: float, case: str = "", draws: int = 1
) -> list[dict[str, Any]]:
    """Return rows whose mean over draws is the accuracy; the first and last draw differ by 2 %."""
    offsets = np.linspace(-0.01, 0.01, draws) if draws > 1 else [0.0]
    return [
        row(
            "evaluation",
            "accuracy",
            value + float(offset),
            node=name,
            case=case,
            release=release,
            M=M,
            draw=draw,
        )
        for draw, offset in enumerate(offsets)
        for name, value in accuracies.items()
    ]


def write_run(
    directory: Path,
    rows: list[dict[str, Any]],
    names: list[str],
    *,
    data: Mapping[str, Any] | None = None,
    seed: int = 0,
    status: str = "done",
    **themis: Any,
) -> Path:
    directory.mkdir(parents=True)
    info = {
        "run": directory.name,
        "system": "themis",
        "experiment": "synthetic",
        "nodes": names,
        "engine": "inprocess",
        "status": status,
        "seed": seed,
        "started": "2026-01-01T00:00:00+00:00",
    }
    if status == "done":
        totals = {"count": 3, "bytes_sent": 10, "bytes_received": 20}
        info |= {"seconds": {"join": 0.5, "local training": 2.0}, "exchanges": {"join": totals}}
    settings = {
        "name": "synthetic",
        "seed": seed,
        "data": {"name": "cifar10", "label": None, **(data or {})},
        "participants": participants_of(names),
        "themis": themis,
    }
    (directory / "run.json").write_text(json.dumps(info))
    (directory / "experiment.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    (directory / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return directory


def competition_rows(
    plain: Mapping[str, float],
    untrained: Mapping[str, float],
    trained: Accuracies,
    bounds: tuple[float, ...] = (1.0,),
    epochs: int = 2,
    draws: int = 2,
) -> list[dict[str, Any]]:
    """Return everything a competition measures; ``trained`` by case."""
    rows = [
        row("local", "accuracy", 0.5 + 0.1 * i, node=name, round=i)
        for i in (1, 2)
        for name in plain
    ]
    rows += accuracy_rows("plain", plain, 0.0)
    for M in bounds:
        rows += accuracy_rows("untrained", untrained, M, draws=draws)
        rows += protection_rows("untrained", "", M)
    for case, accuracies in trained.items():
        rows += generator_rows(untrained, accuracies, case, epochs)
        for M in bounds:
            rows += accuracy_rows("trained", accuracies, M, case, draws)
            rows += protection_rows("trained", case, M)
    return rows


def protection_rows(release: str, case: str, M: float) -> list[dict[str, Any]]:
    values = {"mean_sigma": 0.4 * M, "psnr": 8.0, "ssim": 0.5, "examiner_accuracy": 0.7}
    return [
        row("protection", metric, value, case=case, release=release, M=M)
        for metric, value in values.items()
    ]


def generator_rows(
    start: Mapping[str, float], end: Mapping[str, float], case: str, epochs: int
) -> list[dict[str, Any]]:
    if not epochs:
        return []
    rows = [
        row(
            "generator",
            "validation_accuracy",
            value + (end[name] - value) * (1 - 0.8**epoch),
            node=name,
            round=epoch,
            case=case,
        )
        for epoch in range(epochs + 1)
        for name, value in start.items()
        if name in end
    ]
    return rows + [
        row("generator", "mean_sigma", 0.5 - 0.01 * epoch, round=epoch, case=case)
        for epoch in range(1, epochs + 1)
    ]


def write_artefacts(
    directory: Path, cases: list[str], channels: int = 1, side: int = 8, images: int = 8
) -> None:
    """Put the arrays that the plots need beside the rows."""
    randomness = np.random.default_rng(0)
    for case in cases:
        (directory / case).mkdir()
        noise = randomness.normal(size=(2, 2, channels, side, side)).astype(np.float32)
        np.savez_compressed(
            directory / case / "generator.npz",
            trained=noise[0],
            untrained=noise[1],
            M=1.0,
            release_M=[1.0],
        )
        shape = (images, channels, side, side)
        np.savez_compressed(
            directory / case / "samples.npz",
            **{
                name: randomness.normal(0.5, 0.4, shape).astype(np.float32)
                for name in ("plain", "untrained M=1", "trained M=1")
            },
        )
