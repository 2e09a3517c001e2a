"""DLMT: what central and federated training on disguised images compute, send and survive."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from competition_helpers import ListeningGrid
from node_files import node_file
from PIL import Image
from split_helpers import Interrupted, asked, bytes_of, forget_nodes, measured, model_of, run, same

import pudica.clients.app
import pudica.strategies.core.recorder
from pudica import models
from pudica.clients import protocol
from pudica.clients.assignments import parse_assignment
from pudica.clients.data import load_once, select_node_images
from pudica.clients.dlmt.assigned import AssignedOwner
from pudica.clients.runtime.vault import Vault
from pudica.clients.shields.disguises import Key, KeyedDisguise, Span
from pudica.models.errors import RequestError
from pudica.models.files import load_tensors, save_tensors
from pudica.models.randomness import SystemGenerator, derive
from pudica.simulations.engines.inprocess import InProcessGrid
from pudica.simulations.engines.local import build_run_config, build_server_context
from pudica.strategies.app import app as server_app
from pudica.strategies.dlmt.config import AggregationConfig
from pudica.strategies.dlmt.experiment import DlmtExperiment
from pudica.strategies.dlmt.federated import Average, Trained
from pudica.strategies.dlmt.measures import convert_normalisation
from pudica.strategies.loading import load_experiment

TINY = [
    "data.limit=90",
    "dlmt.owners=1",
    "dlmt.cases={}",
    "dlmt.model=cnn-tiny",
    "dlmt.training={epochs: 3, batch_size: 16, learning_rate: 0.1}",
    "dlmt.measures=false",
]
FEDERATED = ("dlmt.train=federated", "dlmt.owners=3")


def tiny(*overrides: str) -> DlmtExperiment:
    experiment = load_experiment("dlmt-digits", [*TINY, *overrides])
    assert isinstance(experiment, DlmtExperiment)
    return experiment


def owners_of(grid: ListeningGrid, place: Path) -> list[AssignedOwner]:
    """Return the owners of a run's last case, made anew."""
    words = [protocol.words_of(message.content) for message in asked(grid, protocol.JOIN)]
    assignments = [parse_assignment(str(each["assignment"])) for each in words]
    last = {assignment.partition: assignment for assignment in assignments}
    return [AssignedOwner(Vault(place / str(n)), last[n]) for n in sorted(last)]  # type: ignore[arg-type]


# ------------------------------------------------------------------- what is computed


@pytest.mark.parametrize("shield", ["null", "MAT(256)+MMT(10)", "Sharma(2)"])
def test_fedavg_with_one_owner_is_central_training(tmp_path: Path, shield: str) -> None:
    common = (f"dlmt.shield={shield}", "dlmt.model=cnn-small")
    run(tiny(*common), tmp_path / "central")
    federated = ("dlmt.train=federated", "dlmt.keep_momentum=true")
    run(tiny(*common, *federated), tmp_path / "federated")
    assert same(model_of(tmp_path / "central"), model_of(tmp_path / "federated"))


def test_without_kept_momentum_each_round_begins_without(tmp_path: Path) -> None:
    for kept in ("true", "false"):
        run(tiny("dlmt.train=federated", f"dlmt.keep_momentum={kept}"), tmp_path / kept)
    assert not same(model_of(tmp_path / "true"), model_of(tmp_path / "false"))
    once = ("dlmt.train=federated", "dlmt.local_epochs=3")
    run(tiny(*once), tmp_path / "once")  # one round of three epochs has no other round to forget
    assert same(model_of(tmp_path / "true"), model_of(tmp_path / "once"))


def test_the_cloud_trains_on_every_owners_disguised_images_once(tmp_path: Path) -> None:
    shield = ("dlmt.shield=MAT(300)", "dlmt.key=per-owner", "dlmt.owners=3")
    grid = run(tiny(*shield, "dlmt.training.epochs=1"), tmp_path / "run")
    received: dict[int, list[np.ndarray]] = {}
    for message in grid.replies:
        if message.metadata.message_type == protocol.IMAGES:
            arrays = protocol.arrays_of(message.content)
            received.setdefault(message.metadata.src_node_id, []).append(arrays["images"])
    for owner, images in zip(owners_of(grid, tmp_path), received.values(), strict=True):
        plain = owner.plain_images("train").plain_images(slice(None))
        assert owner.key is not None
        shown = KeyedDisguise(owner.key).protect(plain)
        np.testing.assert_array_equal(np.concatenate(images), shown.numpy())
    assert len({owner.key.fingerprint for owner in owners_of(grid, tmp_path) if owner.key}) == 3
    assert sum(len(part) for parts in received.values() for part in parts) == 90
    assert not (tmp_path / "run" / "main" / "received.npy").exists()


def test_images_are_normalised_by_the_statistics_of_all_owners(tmp_path: Path) -> None:
    grid = run(tiny(*FEDERATED, "dlmt.shield=MMT(9)"), tmp_path / "run")
    sent = protocol.arrays_of(asked(grid, protocol.ROUND)[0].content)["normalisation"]
    everything = [
        owner.disguised_images("train").pixels(slice(None)) for owner in owners_of(grid, tmp_path)
    ]
    pixels = torch.cat(everything).double()
    wanted = [pixels.mean(), pixels.std(correction=0)]
    np.testing.assert_allclose(sent[:, 0], wanted, rtol=1e-5)


def test_shared_keys_are_one_and_own_keys_differ(tmp_path: Path) -> None:
    keys = {}
    for kind in ("shared", "per-owner"):
        grid = run(tiny(*FEDERATED, "dlmt.shield=MAT(9)", f"dlmt.key={kind}"), tmp_path / kind)
        keys[kind] = {owner.key.fingerprint for owner in owners_of(grid, tmp_path) if owner.key}
    assert [len(found) for found in keys.values()] == [1, 3]
    shared = Key.from_seed("MAT(9)", (1, 8, 8), derive(0, "data")).fingerprint
    assert keys["shared"] == {shared}


def trained(value: float, examples: int, buffers: float = 0.0) -> Trained:
    model = {"weights": np.float32([value]), "buffers": np.float32([buffers])}
    return Trained(model, examples, loss=0.0)


@pytest.fixture
def at_the_server() -> None:
    """Name this process to Flower, whose strategies take messages."""
    build_server_context({})


@pytest.mark.usefixtures("at_the_server")
def test_averages_are_weighted_by_examples() -> None:
    now = {"weights": np.float32([0.0]), "buffers": np.float32([0.0])}
    replies = {1: trained(1.0, 30, 4.0), 2: trained(5.0, 10, 0.0)}
    found = Average(AggregationConfig())(0, now, replies)
    assert found["weights"].tolist() == [2.0]
    assert found["buffers"].tolist() == [3.0]


def adaptive(name: str, rounds: int, change: float) -> list[float]:
    """Return the weights of Algorithm 2 of Reddi et al. 2021, worked out round by round."""
    beta_1, beta_2, tau, rate = (0.0 if name == "fedadagrad" else 0.9), 0.99, 1e-3, 0.1
    x = m = v = 0.0
    found = []
    for number in range(1, rounds + 1):
        m = beta_1 * m + (1 - beta_1) * change
        if name == "fedadagrad":
            v = v + change**2
        elif name == "fedadam":
            v = beta_2 * v + (1 - beta_2) * change**2
        else:
            v = v - (1 - beta_2) * change**2 * np.sign(v - change**2)
        # Flower corrects Adam's bias as Kingma and Ba 2015 do, but as if it were a round later.
        late = number + 1
        corrected = (1 - beta_2**late) ** 0.5 / (1 - beta_1**late) if name == "fedadam" else 1
        x = x + rate * corrected * m / (v**0.5 + tau)
        found.append(x)
    return found


@pytest.mark.usefixtures("at_the_server")
@pytest.mark.parametrize("name", ["fedadagrad", "fedadam", "fedyogi"])
def test_fedopt_is_that_of_its_paper_over_a_stop_and_leaves_buffers_to_averaging(name: str) -> None:
    config = AggregationConfig(name=name, learning_rate=0.1)  # type: ignore[arg-type]
    average, now = Average(config), {"weights": np.float32([0.0]), "buffers": np.float32([1.0])}
    found = []
    for number in range(4):
        here = float(now["weights"][0])
        replies = {1: trained(here + 1, 1, 0.5), 2: trained(here + 3, 1, 0.25)}  # 2 on average
        again = Average(config)
        again.restore(average.tensors())
        average, now = again, again(number, now, replies)
        assert now["buffers"].tolist() == [0.375]
        found.append(float(now["weights"][0]))
    np.testing.assert_allclose(found, adaptive(name, 4, 2.0), rtol=1e-5)


def test_the_strategy_remembers_its_moments_over_a_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pudica.strategies.core.recorder, "CHECKPOINT_SECONDS", 0.0)
    settings = (*FEDERATED, "dlmt.aggregate={name: fedyogi}", "dlmt.keep_momentum=true")
    run(tiny(*settings), tmp_path / "whole")
    with pytest.raises(Interrupted):
        run(tiny(*settings), tmp_path / "stopped", stop=(protocol.ROUND, 8))
    run(tiny(*settings), tmp_path / "stopped")
    assert same(model_of(tmp_path / "whole"), model_of(tmp_path / "stopped"))


def test_a_share_of_the_owners_takes_part_in_a_round(tmp_path: Path) -> None:
    settings = ("dlmt.train=federated", "dlmt.owners=6", "dlmt.participation=0.5")
    grids = [run(tiny(*settings), tmp_path / name) for name in ("a", "b")]
    rounds = [
        [
            (protocol.words_of(m.content)["round"], grid.partition[m.metadata.dst_node_id])
            for m in asked(grid, protocol.ROUND)
        ]
        for grid in grids
    ]
    assert rounds[0] == rounds[1]
    drawn = [{who for number, who in rounds[0] if number == n} for n in range(3)]
    assert [len(who) for who in drawn] == [3, 3, 3]
    assert len({frozenset(who) for who in drawn}) > 1


def test_augmentation_before_the_disguise_is_of_plain_pixels(tmp_path: Path) -> None:
    settings = ("dlmt.train=federated", "dlmt.shield=MAT(300)", "dlmt.training.augment=crop-flip")
    for first in ("true", "false"):
        run(tiny(*settings, f"dlmt.training.augment_first={first}"), tmp_path / first)
    assert not same(model_of(tmp_path / "true"), model_of(tmp_path / "false"))
    grid = run(tiny(*settings), tmp_path / "again")
    (owner,) = owners_of(grid, tmp_path)
    images = owner.disguised_images("train")
    shifted, _ = images.batch(np.arange(4), lambda x: x.roll(1, 3))
    assert owner.key is not None
    wanted = KeyedDisguise(owner.key).protect(images.plain_images(np.arange(4)).roll(1, 3))
    span = images.span
    torch.testing.assert_close(shifted, ((wanted - span.low) / (span.high - span.low)).float())


# -------------------------------------------------------------------------- measures


@pytest.mark.parametrize("shield", ["MAT(256)+MMT(10)", "Sharma(2)"])
def test_vp_and_mm_are_those_worked_out_from_the_models_files(tmp_path: Path, shield: str) -> None:
    """Without anything that the run measured them with: raw values, models, argmax, counting."""
    settings = ("dlmt.measures=true", "data.limit=300", "dlmt.training.epochs=6")
    cases = f'dlmt.cases={{plain: {{}}, hidden: {{shield: "{shield}"}}}}'
    grid = run(tiny(*settings, cases), tmp_path / "run")
    (owner,) = owners_of(grid, tmp_path)
    plain, labels = (
        owner.plain_images("test").plain_images(slice(None)),
        owner.plain_images("test").labels,
    )
    assert owner.key is not None
    disguised = KeyedDisguise(owner.key).protect(plain)
    hidden, examiner = (
        load_tensors(tmp_path / "run" / case / "model.safetensors") for case in ("hidden", "plain")
    )

    def right(kept: Any, values: torch.Tensor, like: Any) -> float:
        """Return the accuracy of a model on values that are normalised as another's were."""
        (low, high), mean, std = like[1]["values"], like[1]["mean"][0], like[1]["std"][0]
        x = (values.double() - low - mean * (high - low)) / (std * (high - low))
        model = models.build("cnn-tiny", num_classes=10, channels=1, image_size=8)
        model.load_state_dict(kept[0])
        return float((model.eval()(x.float()).argmax(1).numpy() == labels).mean())

    rates = {
        (row["metric"], row.get("view"), row["normalised"]): row["value"]
        for row in measured(tmp_path / "run", stage="measures", case="hidden")
        if "normalised" in row
    }
    own = owner.plain_images("train").plain_images(slice(None)).double()
    as_plain = {
        "values": (0, 255),
        "mean": [own.mean() / 255],
        "std": [own.std(correction=0) / 255],
    }
    wanted = {
        ("misusability", None, "by-model"): right(hidden, plain, hidden),
        ("misusability", None, "by-images"): right(hidden, plain, (None, as_plain)),
        ("visual_privacy", "disguised", "by-model"): 1 - right(examiner, disguised, examiner),
        ("visual_privacy", "disguised", "by-images"): 1 - right(examiner, disguised, hidden),
    }
    for rate, value in wanted.items():
        assert rates[rate] == pytest.approx(value, abs=2 / len(labels)), rate
    assert len({round(value, 3) for value in wanted.values()}) > 1


def test_a_normalisation_is_the_same_in_units_of_another_span() -> None:
    # A mean of 100 and a deviation of 50, of values from 1 to 511 and then of pixels.
    disguised = Span(1, 511, "integers")
    normalisation = np.float32([[99 / 510], [50 / 510]])
    np.testing.assert_allclose(
        convert_normalisation(normalisation, disguised, Span()),
        [[100 / 255], [50 / 255]],
        rtol=1e-6,
    )


def test_measures_are_those_of_the_models_that_were_trained(tmp_path: Path) -> None:
    settings = (
        "dlmt.measures=true",
        "dlmt.training.epochs=8",
        "data.limit=600",
        "dlmt.cases={hidden: {shield: MAT(256)+MMT(10)}, plain: {}}",
    )
    run(tiny(*settings), tmp_path / "run")
    rates = {
        (row["metric"], row.get("view"), row.get("normalised")): row["value"]
        for row in measured(tmp_path / "run", stage="measures", case="hidden")
    }
    plain = measured(tmp_path / "run", stage="test", case="plain")[-1]["value"]
    privacy = rates["visual_privacy", "disguised", "by-model"]
    undone = rates["visual_privacy", "standardised", "by-model"]
    assert undone == pytest.approx(1 - plain, abs=0.05)
    assert privacy > undone + 0.2
    assert rates["ssim_standardised", None, None] > 0.9 > rates["ssim", None, None]
    assert not measured(tmp_path / "run", stage="measures", case="plain")
    found = measured(tmp_path / "run", stage="breaks", attack="one known pair", metric="found")
    assert found[0]["value"] > 0.7


# ------------------------------------------------------------------ what is given away


@pytest.mark.parametrize("how", ["central", "federated"])
@pytest.mark.parametrize("key", ["shared", "per-owner", "file"])
def test_no_key_is_in_any_message_log_or_result(tmp_path: Path, how: str, key: str) -> None:
    file = tmp_path / "owners.key"
    Key.from_seed("MAT(300)+MMT(20)", (1, 8, 8), 7).save(file)
    settings = (f"dlmt.train={how}", "dlmt.owners=2", "dlmt.shield=MAT(300)+MMT(20)")
    named = str(file) if key == "file" else key
    grid = run(tiny(*settings, f"dlmt.key={named}", "dlmt.measures=true"), tmp_path / "run")
    payloads = [bytes_of(message) for message in [*grid.requests, *grid.replies]]
    files = [path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()]
    for owner in owners_of(grid, tmp_path / "again"):
        assert owner.key is not None
        assert any(owner.key.fingerprint.encode() in content for content in files)
        for secret in owner.key.tensors.values():
            for kind in (np.int64, np.int32, np.int16, np.float32, np.float64):
                needle = secret.numpy().astype(kind).tobytes()
                assert not any(needle in content for content in [*payloads, *files])


def test_an_owner_who_trains_gives_no_images_away(tmp_path: Path) -> None:
    grid = run(tiny(*FEDERATED, "dlmt.shield=MAT(256)"), tmp_path / "run")
    assert not asked(grid, protocol.IMAGES)
    with pytest.raises(RuntimeError, match="gives no images away"):
        owners_of(grid, tmp_path)[0].send_images({"start": 0, "count": 10}, {})
    kinds = {name for m in grid.replies for name in protocol.arrays_of(m.content)}
    assert kinds == {"normalisation", "weights", "buffers"}


def test_the_ledger_counts_every_time_that_test_images_are_shown(tmp_path: Path) -> None:
    cases = "dlmt.cases={plain: {}, hidden: {shield: MAT(9)}}"
    grid = run(tiny("dlmt.measures=true", cases), tmp_path / "run")
    shown = [protocol.words_of(message.content) for message in asked(grid, protocol.RIGHT)]
    entries = json.loads((tmp_path / "run" / "releases.json").read_text())
    for case in ("plain", "hidden"):
        for records in ("test", "validation"):
            times = sum(w["case"] == case and w["part"] == records for w in shown)
            answers = [e for e in entries if e["what"] == "number of right answers"]
            (entry,) = [e for e in answers if (e["case"], e["records"]) == (case, records)]
            assert entry["count"] == times


def test_the_ledger_says_that_nothing_holds(tmp_path: Path) -> None:
    from pudica.analysis.privacy import verdict

    for how in ("central", "federated"):
        run(tiny(f"dlmt.train={how}", "dlmt.shield=MAT(256)"), tmp_path / how)
        found = verdict(tmp_path / how)["main"]
        assert found.epsilon is None
        assert any("disguised" in reason for reason in found.reasons)


# ---------------------------------------------------------------- stops and wrong answers


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Runs that nothing happens to, each made once."""
    made: dict[tuple[str, ...], Path] = {}

    def make(*settings: str) -> Path:
        if settings not in made:
            made[settings] = tmp_path_factory.mktemp("undisturbed") / "run"
            run(tiny(*settings), made[settings])
        return made[settings]

    return make


@pytest.mark.parametrize(
    ("how", "stop"),
    [
        ("central", (protocol.IMAGES, 1)),
        ("central", (protocol.RIGHT, 1)),
        ("central", (protocol.RIGHT, 7)),
        ("federated", (protocol.ROUND, 1)),
        ("federated", (protocol.ROUND, 5)),
        ("federated", (protocol.AUDIT, 1)),
    ],
)
@pytest.mark.parametrize("seconds", [0.0, 1e9])
def test_a_run_that_was_stopped_ends_as_if_it_had_not_been(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    undisturbed: Callable[..., Path],
    how: str,
    stop: tuple[str, int],
    seconds: float,
) -> None:
    monkeypatch.setattr(pudica.strategies.core.recorder, "CHECKPOINT_SECONDS", seconds)
    settings = (
        f"dlmt.train={how}",
        "dlmt.owners=2",
        f"dlmt.keep_momentum={'true' if how == 'federated' else 'false'}",
        "dlmt.measures=true",
        "dlmt.cases={plain: {}, hidden: {shield: MAT(9)}}",
    )
    whole = undisturbed(*settings)
    with pytest.raises(Interrupted):
        run(tiny(*settings), tmp_path / "stopped", stop=stop)
    run(tiny(*settings), tmp_path / "stopped")
    assert same(model_of(whole, "hidden"), model_of(tmp_path / "stopped", "hidden"))
    assert measured(whole) == measured(tmp_path / "stopped")


@pytest.mark.parametrize("how", ["central", "federated"])
def test_a_run_that_an_older_version_began_goes_on(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    undisturbed: Callable[..., Path],
    how: str,
) -> None:
    monkeypatch.setattr(pudica.strategies.core.recorder, "CHECKPOINT_SECONDS", 0.0)
    settings = (f"dlmt.train={how}", "dlmt.owners=2", "dlmt.cases={a: {shield: MAT( 9 )}}")
    whole = undisturbed(*settings)
    with pytest.raises(Interrupted):
        run(tiny(*settings), tmp_path / "run", stop=(protocol.RIGHT, 7))
    checkpoint = tmp_path / "run" / "checkpoint.safetensors"
    arrays, note = load_tensors(checkpoint)
    note["position"] = {task: {"done": each["round"]} for task, each in note["position"].items()}
    assert [each["done"] > 0 for each in note["position"].values()] == [True]
    save_tensors(checkpoint, arrays, note)
    written = tmp_path / "run" / "experiment.yaml"
    written.write_text(written.read_text().replace("MAT(9)", "MAT( 9 )"))
    run(tiny(*settings), tmp_path / "run")
    assert same(model_of(whole, "a"), model_of(tmp_path / "run", "a"))
    assert measured(whole) == measured(tmp_path / "run")


def test_an_owner_in_a_fresh_process_for_each_message_does_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = (*FEDERATED, "dlmt.shield=MAT(256)", "dlmt.keep_momentum=true")
    run(tiny(*settings), tmp_path / "kept")
    forget_nodes(monkeypatch)
    run(tiny(*settings), tmp_path / "fresh")
    assert same(model_of(tmp_path / "kept"), model_of(tmp_path / "fresh"))


def test_a_round_goes_on_without_an_owner_that_fails(tmp_path: Path) -> None:
    grid = run(tiny(*FEDERATED), tmp_path / "run", faults=[(protocol.ROUND, 1, 2)])
    assert len(asked(grid, protocol.ROUND)) == 9
    rows = measured(tmp_path / "run", metric="dropouts")
    assert [(row["node"], row["round"], row["value"]) for row in rows] == [("owner-1", 2, 1)]


def test_the_cloud_does_not_train_on_some_owners_images_only(tmp_path: Path) -> None:
    experiment = tiny("dlmt.owners=2")
    with pytest.raises(RuntimeError, match=r"query\.images: 1 participants answered"):
        run(experiment, tmp_path / "run", faults=[(protocol.IMAGES, 1, 1)])
    run(experiment, tmp_path / "run")
    assert measured(tmp_path / "run", stage="test")


@pytest.mark.parametrize(
    ("kind", "array", "change", "why"),
    [
        (protocol.ROUND, "weights", lambda a: a * np.nan, "weights with NaN"),
        (protocol.ROUND, "weights", lambda a: a[:-1], "of shape"),
        (protocol.ROUND, "weights", lambda a: a.astype(np.float64), "of float32 were asked for"),
        (protocol.STATISTICS, "normalisation", lambda a: a + 1, "mean or deviation outside 0 to 1"),
        (protocol.STATISTICS, "normalisation", lambda a: a * np.nan, "normalisation with NaN"),
        (protocol.IMAGES, "images", lambda a: a + 600, "values outside 1 to 555"),
        (protocol.IMAGES, "images", lambda a: a[:, :, 1:], "of shape"),
        (protocol.IMAGES, "labels", lambda a: a + 90, "a label outside 0 to 9"),
    ],
)
def test_a_wrong_answer_is_a_dropout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, array: str, change: Any, why: str
) -> None:
    how = "central" if kind == protocol.IMAGES else "federated"
    original = protocol.reply

    def changed(metrics: Any, **arrays: np.ndarray) -> Any:
        if array in arrays and (array != "weights" or "loss" in metrics):
            arrays[array] = change(arrays[array])
        return original(metrics, **arrays)

    monkeypatch.setattr(protocol, "reply", changed)
    with pytest.raises(RuntimeError, match="participants answered"):
        run(tiny(f"dlmt.train={how}", "dlmt.shield=MAT(300)"), tmp_path / "run")
    assert why in (tmp_path / "run" / "events.log").read_text()


@pytest.mark.parametrize(
    ("word", "value"),
    [
        *(("train", -5), ("train", 10**13), ("train", 2.5), ("classes", "10"), ("classes", 10.0)),
        *(("kind", "ghosts"), ("high", -1), ("low", 10**400), ("key", 7)),
        *(("shape", "8x8"), ("shape", "1x99999x99999"), ("shape", "1x٨x8"), ("shape", [1, 8, 8])),
    ],
)
def test_who_says_nonsense_of_its_data_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word: str, value: Any
) -> None:
    introduced = AssignedOwner.describe_data

    def changed(owner: AssignedOwner) -> dict[str, int | str]:
        second = owner.assignment.partition == 1
        return introduced(owner) | ({word: value} if second else {})

    monkeypatch.setattr(AssignedOwner, "describe_data", changed)
    grid = run(tiny(*FEDERATED), tmp_path / "run")
    assert {grid.partition[m.metadata.dst_node_id] for m in asked(grid, protocol.ROUND)} == {0, 2}


def test_nobody_counts_for_more_than_it_joined_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tiny(*FEDERATED), tmp_path / "honest")

    def boasting(owner: AssignedOwner, *arguments: Any) -> Any:
        content = owner.train_round(*arguments)
        content["metrics"]["num-examples"] = 1e12
        return content

    monkeypatch.setitem(AssignedOwner.handlers, protocol.ROUND, boasting)
    run(tiny(*FEDERATED), tmp_path / "boasting")
    assert same(model_of(tmp_path / "honest"), model_of(tmp_path / "boasting"))
    lie = protocol.reply({"right": 10**6})
    monkeypatch.setitem(AssignedOwner.handlers, protocol.RIGHT, lambda *_: lie)
    with pytest.raises(
        RuntimeError, match=r"evaluate\.right: 'right' must be a whole number 0 to .*, is 1000000"
    ):
        run(tiny(*FEDERATED), tmp_path / "lying")


def test_a_resumed_run_normalises_as_it_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pudica.strategies.core.recorder, "CHECKPOINT_SECONDS", 0.0)
    wanted = tiny(*FEDERATED, "dlmt.min_owners=2", "dlmt.partition={scheme: linear}")
    with pytest.raises(Interrupted):
        run(wanted, tmp_path / "run", stop=(protocol.ROUND, 4))
    grid = run(wanted, tmp_path / "run", faults=[(protocol.JOIN, 2, 1)])
    used = {
        protocol.arrays_of(message.content)["normalisation"].tobytes()
        for message in asked(grid, protocol.ROUND)
    }
    whole = run(wanted, tmp_path / "whole")
    first = protocol.arrays_of(asked(whole, protocol.ROUND)[0].content)["normalisation"]
    assert used == {first.tobytes()}


def test_who_comes_back_with_other_images_is_left_out_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pudica.strategies.core.recorder, "CHECKPOINT_SECONDS", 0.0)
    wanted = tiny(*FEDERATED, "dlmt.min_owners=2")
    with pytest.raises(Interrupted):
        run(wanted, tmp_path / "run", stop=(protocol.ROUND, 4))
    introduced = AssignedOwner.describe_data

    def fewer(owner: AssignedOwner) -> dict[str, int | str]:
        said = introduced(owner)
        return said | ({"train": int(said["train"]) - 1} if owner.assignment.partition == 1 else {})

    monkeypatch.setattr(AssignedOwner, "describe_data", fewer)
    grid = run(wanted, tmp_path / "run")
    assert {grid.partition[m.metadata.dst_node_id] for m in asked(grid, protocol.ROUND)} == {0, 2}
    assert "this run was begun with" in (tmp_path / "run" / "events.log").read_text()


def test_the_cloud_does_not_go_on_with_fewer_images_than_it_began_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pudica.strategies.core.recorder, "CHECKPOINT_SECONDS", 0.0)
    wanted = tiny("dlmt.owners=2")
    with pytest.raises(Interrupted):
        run(wanted, tmp_path / "run", stop=(protocol.RIGHT, 7))
    with pytest.raises(RuntimeError, match="answered"):
        run(wanted, tmp_path / "run", faults=[(protocol.JOIN, 1, 1)])
    run(wanted, tmp_path / "run")
    run(wanted, tmp_path / "whole")
    assert same(model_of(tmp_path / "run"), model_of(tmp_path / "whole"))


@pytest.mark.parametrize("stop", [(protocol.ROUND, 2), (protocol.ROUND, 5)])
def test_kept_momentum_of_owners_that_take_turns_survives_a_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: tuple[str, int]
) -> None:
    monkeypatch.setattr(pudica.strategies.core.recorder, "CHECKPOINT_SECONDS", 0.0)
    settings = ("dlmt.owners=4", "dlmt.train=federated", "dlmt.participation=0.5")
    wanted = tiny(*settings, "dlmt.keep_momentum=true", "dlmt.training.epochs=5")
    run(wanted, tmp_path / "whole")
    with pytest.raises(Interrupted):
        run(wanted, tmp_path / "stopped", stop=stop)
    run(wanted, tmp_path / "stopped")
    assert same(model_of(tmp_path / "whole"), model_of(tmp_path / "stopped"))


def test_a_new_run_of_the_same_name_does_not_find_the_old_ones_momentum(tmp_path: Path) -> None:
    settings = ("dlmt.owners=3", "dlmt.train=federated", "dlmt.keep_momentum=true")
    run(tiny(*settings), tmp_path / "run")
    for path in (tmp_path / "run").iterdir():
        if path.name != "vault":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    other = tiny(*settings, "dlmt.participation=0.34")
    run(other, tmp_path / "run")
    run(other, tmp_path / "fresh" / "run")
    assert same(model_of(tmp_path / "run"), model_of(tmp_path / "fresh" / "run"))


def test_a_disk_that_is_too_small_for_the_images_is_said_before_they_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type(shutil.disk_usage(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10, 10, 10))
    with pytest.raises(RequestError, match="free some space, and resume the run"):
        run(tiny(), tmp_path / "run")


def test_what_the_cloud_receives_is_for_its_own_eyes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Interrupted):
        run(tiny(), tmp_path / "run", stop=(protocol.RIGHT, 1))
    for name in ("received.npy", "seen.safetensors"):
        assert (tmp_path / "run" / "main" / name).stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "run" / "releases.json").exists()  # written before anything was asked for


def test_more_owners_than_test_images_measure_what_they_have(tmp_path: Path) -> None:
    settings = ("dlmt.owners=30", "data.limit=90", "dlmt.measures=true", "dlmt.shield=MAT(9)")
    run(tiny(*settings, "dlmt.training.epochs=1"), tmp_path / "run")
    assert not (tmp_path / "run" / "events.log").exists()
    assert measured(tmp_path / "run", stage="breaks", node="owner-29")


@pytest.mark.parametrize(
    ("part", "view", "model", "why"),
    [
        ("train", "disguised", "cnn-tiny", "shows nobody its train images"),
        ("test", "plain", "cnn-tiny", "shows nobody its test images, plain"),
        ("test", "ghosts", "cnn-tiny", "shows nobody"),
        ("test", "disguised", "resnet-8", "told of no model 'resnet-8'"),
    ],
)
def test_an_owner_shows_models_no_more_than_it_was_told(
    tmp_path: Path, part: Any, view: str, model: str, why: str
) -> None:
    (owner,) = owners_of(run(tiny("dlmt.shield=MAT(9)"), tmp_path / "run"), tmp_path)
    with pytest.raises(RuntimeError, match=why):
        owner.count_correct({"part": part, "view": view, "model": model}, {})
    with pytest.raises(RuntimeError, match="not told to measure"):
        owner.audit({}, {})


@pytest.mark.parametrize(
    ("own", "settings", "why"),
    [
        ({"key": "MAT(9)"}, [], None),
        ({"key": "MAT(10)"}, [], "is not for MAT"),
        ({"key": "MAT(9)"}, ["dlmt.shield=null"], "is not for plain images"),
        ({"train": "federated"}, [], "takes part in federated training, not in central"),
        ({}, [], "has not said how its images are protected: set key"),
        ({"systems": ["themis"]}, [], "takes part in themis, not in dlmt"),
    ],
)
def test_a_deployed_owner_insists_on_its_key_and_on_who_trains(
    tmp_path: Path, own: dict[str, object], settings: list[str], why: str | None
) -> None:
    config: dict[str, object] = {"systems": ["dlmt"], **own}
    if "key" in own:
        config["key"] = "own.key"
        Key.new(str(own["key"]), (1, 8, 8), SystemGenerator()).save(tmp_path / "own.key")
    wanted = tiny("dlmt.shield=MAT(9)", *settings, "dlmt.training.epochs=1")
    run_settings = build_run_config(wanted, tmp_path / "run", "inprocess")
    grid = InProcessGrid(pudica.clients.app.app, 1, run_settings)
    for context in grid._contexts.values():
        context.node_config.update({"node": str(node_file(tmp_path / "node.yaml", **config))})
    if why is None:
        server_app(grid, build_server_context(run_settings))
        used = json.loads((tmp_path / "run" / "run.json").read_text())["keys"]["owner-0/main"]
        assert used == Key.load(tmp_path / "own.key").fingerprint
        return
    with pytest.raises(RuntimeError, match="participants answered"):
        server_app(grid, build_server_context(run_settings))
    assert why in (tmp_path / "run" / "events.log").read_text()


def test_a_server_learns_nothing_of_files_that_it_names_as_keys(tmp_path: Path) -> None:
    file = tmp_path / "key"
    Key.from_seed("MAT(9)", (1, 8, 8), 0).save(file)
    wanted = tiny("dlmt.shield=MAT(9)", f"dlmt.key={file}")
    file.chmod(0o644)
    with pytest.raises(RuntimeError, match="the key's file can't be used") as caught:
        run(wanted, tmp_path / "run")
    assert "0644" not in str(caught.value)


# -------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        (["dlmt.shield=MAT(0)"], "MAX_V must be a whole number of at least 1"),
        (["dlmt.shield=MUT(9)"], "unknown transformation 'MUT'"),
        (["dlmt.shield=Sharma(3)"], "allowed: 1, 2, 4, 8"),
        (["data.shield=MAT(9)"], "in this system set dlmt.shield"),
        (["data.partition={scheme: iid}"], "in this system set dlmt.partition"),
        (["data.normalize=none"], "leave it out"),
        (["dlmt.training.augment_first=true"], "the cloud sees no plain images"),
        (["dlmt.train=federated", "dlmt.local_epochs=2"], "no whole number of rounds"),
        (["dlmt.examiner=b", "dlmt.cases={a: {}, b: {shield: MAT(9)}}"], "there are: a"),
        (["dlmt.min_owners=2"], "min_owners: 2, but 1 of 1"),
        (["dlmt.examiner=main"], "there are no cases"),
        (["dlmt.cases={run.json: {}}"], "none of"),
        ([f"dlmt.cases={{{'x' * 101}: {{}}}}"], "at most 100"),
        (["dlmt.owners=91"], "cannot divide 90 rows among 91 nodes"),
        (["dlmt.key=no.key", "dlmt.shield=MAT(9)"], "there is no key"),
        (["dlmt.cases={'a/b': {}}"], "a case's name is that of a folder"),
        (["dlmt.participation=0.5"], "nothing comes of it without train: federated"),
        (["dlmt.key=per-owner"], "nothing comes of it without a shield"),
        (["dlmt.key=Shared", "dlmt.shield=MAT(9)"], "allowed: shared, per-owner, or a key file"),
        (["data.key=some.key"], "of dlmt.shield it is dlmt.key"),
    ],
)
def test_wrong_settings_are_explained(settings: list[str], why: str) -> None:
    with pytest.raises(RequestError) as caught:
        tiny(*settings).check()
    assert why in str(caught.value)


def test_a_key_for_something_else_is_refused_by_its_fingerprint(tmp_path: Path) -> None:
    key = Key.from_seed("MAT(9)", (1, 8, 8), 0)
    key.save(tmp_path / "key")
    with pytest.raises(RequestError, match=f"{key.fingerprint}.* is for MAT.9."):
        tiny("dlmt.shield=MAT(10)", f"dlmt.key={tmp_path / 'key'}").check()


def test_another_key_does_not_go_on_with_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pudica.strategies.core.recorder, "CHECKPOINT_SECONDS", 0.0)
    file = tmp_path / "key"
    before, after = (Key.from_seed("MAT(9)", (1, 8, 8), seed) for seed in (0, 1))
    before.save(file)
    experiment = tiny("dlmt.shield=MAT(9)", f"dlmt.key={file}")
    with pytest.raises(Interrupted):
        run(experiment, tmp_path / "run", stop=(protocol.RIGHT, 5))
    file.unlink()
    after.save(file)
    with pytest.raises(RequestError, match=f"{after.fingerprint}.*{before.fingerprint}"):
        run(experiment, tmp_path / "run")


@pytest.mark.parametrize("settings", [("dlmt.owners=2",), FEDERATED])
def test_other_images_of_the_same_shape_do_not_go_on_with_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: tuple[str, ...]
) -> None:
    monkeypatch.setattr(pudica.strategies.core.recorder, "CHECKPOINT_SECONDS", 0.0)
    folder, rng = tmp_path / "photos", np.random.default_rng(0)
    for number in range(120):
        file = folder / f"class-{number % 2}" / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(file)
    data = f"data={{name: image-folder, path: {folder}, channels: 1}}"
    experiment = tiny(*settings, data)
    with pytest.raises(Interrupted):
        run(experiment, tmp_path / "run", stop=(protocol.RIGHT, 5))
    before = file.read_bytes()
    Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(file)
    load_once.cache_clear()  # as in a new process
    with pytest.raises(RuntimeError, match="holds other images than when it joined"):
        run(experiment, tmp_path / "run")
    file.write_bytes(before)
    load_once.cache_clear()
    run(experiment, tmp_path / "run")
    run(experiment, tmp_path / "whole")
    assert same(model_of(tmp_path / "run"), model_of(tmp_path / "whole"))


@pytest.mark.parametrize("settings", [(), FEDERATED])
def test_training_that_diverges_says_so(tmp_path: Path, settings: tuple[str, ...]) -> None:
    # Each step makes the weights nine times as large.
    wild = "dlmt.training={epochs: 30, batch_size: 16, learning_rate: 10, weight_decay: 1}"
    with pytest.raises((RequestError, RuntimeError), match=r"diverged in epoch \d") as found:
        run(tiny(*settings, wild), tmp_path / "run")
    assert "lower the learning_rate, which is 10" in str(found.value)


def test_owners_share_validation_and_test_images_evenly() -> None:
    data = tiny().load_data()
    for part in ("validation", "test"):
        shares = [select_node_images(data, part, n, 3, None, 0) for n in range(3)]  # type: ignore[arg-type]
        rows = np.concatenate([share.rows for share in shares])
        assert sorted(rows) == sorted(getattr(data, part).rows)
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
