"""DLMT: what central and federated training on disguised images compute, send and survive."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from competition_helpers import ListeningGrid
from flwr.app import Message
from flwr.serverapp.strategy import FedAdam
from split_helpers import Interrupted, asked, measured, model_of, run

import clients.app
import strategies.recorder
from clients import protocol
from clients.assignments import parsed as assignment_of
from clients.data import own_images
from clients.owner import Owner
from clients.shields.disguises import Disguise, Key, Span
from clients.vault import Vault
from models.errors import RequestError
from models.packing import model_arrays
from models.randomness import derive
from strategies.dlmt.config import AggregationConfig
from strategies.dlmt.experiment import DlmtExperiment
from strategies.dlmt.federated import Average, Trained
from strategies.dlmt.measures import converted
from strategies.loading import load_experiment

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


def owners_of(grid: ListeningGrid, place: Path) -> list[Owner]:
    """Return the owners of a run's last case, made anew."""
    words = [protocol.words_of(message.content) for message in asked(grid, protocol.JOIN)]
    assignments = [assignment_of(str(each["assignment"])) for each in words]
    last = {assignment.partition: assignment for assignment in assignments}
    return [Owner(Vault(place / str(n)), last[n]) for n in sorted(last)]  # type: ignore[arg-type]


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# ------------------------------------------------------------------- what is computed


@pytest.mark.parametrize("shield", ["null", "MAT(256)+MMT(10)", "Sharma(2)"])
def test_fedavg_with_one_owner_is_central_training(tmp_path: Path, shield: str) -> None:
    common = (f"dlmt.shield={shield}", "dlmt.model=cnn-small", "dlmt.keep_momentum=true")
    run(tiny(*common), tmp_path / "central")
    run(tiny(*common, "dlmt.train=federated"), tmp_path / "federated")
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
        plain = owner.plain("train").plain(slice(None))
        assert owner.key is not None
        shown = Disguise(owner.key).protect(plain)
        np.testing.assert_array_equal(np.concatenate(images), shown.numpy())
    assert len({owner.key.fingerprint for owner in owners_of(grid, tmp_path) if owner.key}) == 3
    assert sum(len(part) for parts in received.values() for part in parts) == 90
    assert not (tmp_path / "run" / "main" / "received.npy").exists()


def test_images_are_normalised_by_the_statistics_of_all_owners(tmp_path: Path) -> None:
    grid = run(tiny(*FEDERATED, "dlmt.shield=MMT(9)"), tmp_path / "run")
    sent = protocol.arrays_of(asked(grid, protocol.ROUND)[0].content)["normalisation"]
    everything = [owner.own("train").pixels(slice(None)) for owner in owners_of(grid, tmp_path)]
    pixels = torch.cat(everything).double()
    wanted = [pixels.mean(), pixels.std(correction=0)]
    np.testing.assert_allclose(sent[:, 0], wanted, rtol=1e-5)


def test_shared_keys_are_one_and_own_keys_differ(tmp_path: Path) -> None:
    keys = {}
    for kind in ("shared", "per-owner"):
        grid = run(tiny(*FEDERATED, "dlmt.shield=MAT(9)", f"dlmt.key={kind}"), tmp_path / kind)
        keys[kind] = {owner.key.fingerprint for owner in owners_of(grid, tmp_path) if owner.key}
    assert [len(found) for found in keys.values()] == [1, 3]
    shared = Key.seeded("MAT(9)", (1, 8, 8), derive(0, "data")).fingerprint
    assert keys["shared"] == {shared}


def trained(value: float, examples: float, buffers: float = 0.0) -> Trained:
    model = {"weights": np.float32([value]), "buffers": np.float32([buffers])}
    return Trained(model, examples, loss=0.0)


def test_averages_are_weighted_by_examples() -> None:
    now = {"weights": np.float32([0.0]), "buffers": np.float32([0.0])}
    replies = {1: trained(1.0, 30, 4.0), 2: trained(5.0, 10, 0.0)}
    found = Average(AggregationConfig())(0, now, replies)
    assert found["weights"].tolist() == [2.0]
    assert found["buffers"].tolist() == [3.0]


def test_fedopt_is_flowers_and_leaves_buffers_to_averaging() -> None:
    now = {"weights": np.float32([0.0]), "buffers": np.float32([1.0])}
    config = AggregationConfig(name="fedadam", learning_rate=0.1)
    average, flower = Average(config), FedAdam(eta=0.1, tau=1e-3)
    flower.current_arrays = {"weights": now["weights"]}
    for number in range(3):
        found = average(number, now, {1: trained(1.0, 1, 0.5), 2: trained(3.0, 1, 0.25)})
        assert found["buffers"].tolist() == [0.375]
        again = Average(config)
        again.restore(average.tensors())
        assert again.tensors().keys() == {"m_t", "v_t"}
    # With a mean change of 2 in each round, by Reddi et al. 2021, Algorithm 2.
    assert found["weights"][0] == pytest.approx(0.1 * 1, rel=0.2)


def test_the_strategy_remembers_its_moments_over_a_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(strategies.recorder, "CHECKPOINT_SECONDS", 0.0)
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
    images = owner.own("train")
    shifted, _ = images.batch(np.arange(4), lambda x: x.roll(1, 3))
    assert owner.key is not None
    wanted = Disguise(owner.key).protect(images.plain(np.arange(4)).roll(1, 3))
    span = images.span
    torch.testing.assert_close(shifted, ((wanted - span.low) / (span.high - span.low)).float())


# -------------------------------------------------------------------------- measures


def test_a_model_that_says_one_class_has_the_rates_that_are_counted_by_hand(tmp_path: Path) -> None:
    grid = run(tiny("dlmt.shield=MAT(256)"), tmp_path / "run")
    (owner,) = owners_of(grid, tmp_path)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model[1].bias[3] = 1.0
    arrays = {name: torch.from_numpy(values) for name, values in model_arrays(model).items()}
    arrays["normalisation"] = torch.tensor([[0.0], [1.0]])
    labels = owner.plain("test").labels
    for view in ("disguised", "plain", "standardised"):
        found = owner.right("test", view, "softmax", arrays)
        assert found == {"right": int((labels == 3).sum()), "num-examples": len(labels)}


def test_a_normalisation_is_the_same_in_units_of_another_span() -> None:
    # A mean of 100 and a deviation of 50, of values from 1 to 511 and then of pixels.
    disguised = Span(1, 511, "integers")
    normalisation = np.float32([[99 / 510], [50 / 510]])
    np.testing.assert_allclose(
        converted(normalisation, disguised, Span()), [[100 / 255], [50 / 255]], rtol=1e-6
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
    Key.seeded("MAT(300)+MMT(20)", (1, 8, 8), 7).save(file)
    settings = (f"dlmt.train={how}", "dlmt.owners=2", "dlmt.shield=MAT(300)+MMT(20)")
    named = str(file) if key == "file" else key
    grid = run(tiny(*settings, f"dlmt.key={named}", "dlmt.measures=true"), tmp_path / "run")
    payloads = [_bytes_of(message) for message in [*grid.requests, *grid.replies]]
    files = [path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()]
    for owner in owners_of(grid, tmp_path / "again"):
        assert owner.key is not None
        assert any(owner.key.fingerprint.encode() in content for content in files)
        for secret in owner.key.tensors.values():
            for kind in (np.int64, np.int32, np.int16, np.float32, np.float64):
                needle = secret.numpy().astype(kind).tobytes()
                assert not any(needle in content for content in [*payloads, *files])


def _bytes_of(message: Message) -> bytes:
    records = [*message.content.array_records.values()]
    arrays = [array.data for record in records for array in record.values()]
    return b"".join(arrays) + repr(message.content.config_records).encode()


def test_an_owner_who_trains_gives_no_images_away(tmp_path: Path) -> None:
    grid = run(tiny(*FEDERATED, "dlmt.shield=MAT(256)"), tmp_path / "run")
    assert not asked(grid, protocol.IMAGES)
    with pytest.raises(RuntimeError, match="gives no images away"):
        owners_of(grid, tmp_path)[0].images(0, 10)
    sizes = {
        array.size
        for message in grid.replies
        for array in protocol.arrays_of(message.content).values()
    }
    assert max(sizes) == sum(value.numel() for value in model_of(tmp_path / "run").values())


def test_the_ledger_says_that_nothing_holds(tmp_path: Path) -> None:
    from analysis.privacy import verdict

    for how in ("central", "federated"):
        run(tiny(f"dlmt.train={how}", "dlmt.shield=MAT(256)"), tmp_path / how)
        found = verdict(tmp_path / how)["main"]
        assert found.epsilon is None
        assert any("disguised" in reason for reason in found.reasons)


# ---------------------------------------------------------------- stops and wrong answers


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
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, stop: tuple[str, int], seconds: float
) -> None:
    monkeypatch.setattr(strategies.recorder, "CHECKPOINT_SECONDS", seconds)
    settings = (
        f"dlmt.train={how}",
        "dlmt.owners=2",
        "dlmt.keep_momentum=true",
        "dlmt.measures=true",
        "dlmt.cases={plain: {}, hidden: {shield: MAT(9)}}",
    )
    run(tiny(*settings), tmp_path / "whole")
    with pytest.raises(Interrupted):
        run(tiny(*settings), tmp_path / "stopped", stop=stop)
    run(tiny(*settings), tmp_path / "stopped")
    assert same(model_of(tmp_path / "whole", "hidden"), model_of(tmp_path / "stopped", "hidden"))
    assert measured(tmp_path / "whole") == measured(tmp_path / "stopped")


def test_an_owner_in_a_fresh_process_for_each_message_does_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = (*FEDERATED, "dlmt.shield=MAT(256)", "dlmt.keep_momentum=true")
    run(tiny(*settings), tmp_path / "kept")
    node = clients.app._node

    def forgetful(config: Any, context: Any) -> Any:
        clients.app._nodes.clear()
        return node(config, context)

    monkeypatch.setattr(clients.app, "_node", forgetful)
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
        (protocol.STATISTICS, "normalisation", lambda a: a * 0, "a deviation that is not above 0"),
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
        (["dlmt.owners=91"], "cannot divide 90 rows among 91 nodes"),
        (["dlmt.key=no.key", "dlmt.shield=MAT(9)"], "there is no key"),
        (["dlmt.cases={'a/b': {}}"], "a case's name is that of a folder"),
    ],
)
def test_wrong_settings_are_explained(settings: list[str], why: str) -> None:
    with pytest.raises(RequestError) as caught:
        tiny(*settings).check()
    assert why in str(caught.value)


def test_a_key_for_something_else_is_refused_by_its_fingerprint(tmp_path: Path) -> None:
    key = Key.seeded("MAT(9)", (1, 8, 8), 0)
    key.save(tmp_path / "key")
    with pytest.raises(RequestError, match=f"{key.fingerprint}.* is for MAT.9."):
        tiny("dlmt.shield=MAT(10)", f"dlmt.key={tmp_path / 'key'}").check()


def test_another_key_does_not_go_on_with_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(strategies.recorder, "CHECKPOINT_SECONDS", 0.0)
    file = tmp_path / "key"
    before, after = (Key.seeded("MAT(9)", (1, 8, 8), seed) for seed in (0, 1))
    before.save(file)
    experiment = tiny("dlmt.shield=MAT(9)", f"dlmt.key={file}")
    with pytest.raises(Interrupted):
        run(experiment, tmp_path / "run", stop=(protocol.RIGHT, 5))
    file.unlink()
    after.save(file)
    with pytest.raises(RuntimeError, match=f"{after.fingerprint}.*{before.fingerprint}"):
        run(experiment, tmp_path / "run")


def test_owners_share_validation_and_test_images_evenly() -> None:
    data = tiny().load_data()
    for part in ("validation", "test"):
        shares = [own_images(data, part, n, 3, None, 0) for n in range(3)]  # type: ignore[arg-type]
        rows = np.concatenate([share.rows for share in shares])
        assert sorted(rows) == sorted(getattr(data, part).rows)
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
