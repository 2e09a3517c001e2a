"""Split learning over messages: the mathematics, who sees what, faults and restarts."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from competition_helpers import rows_of
from split_helpers import Interrupted, asked, edges, measured, model_of, run, tiny, whole
from torch import nn
from torch.nn.functional import cross_entropy

import pudica.clients.app
from pudica.clients import protocol
from pudica.clients.assignments import EdgeAssignment
from pudica.clients.runtime.odometer import ACTIVATIONS, BudgetExhausted, Odometer
from pudica.clients.split.assigned import AssignedEdge
from pudica.clients.split.edge import Edge
from pudica.models import optimizers, packing
from pudica.models.compute import Compute
from pudica.models.cut import Cutter
from pudica.models.errors import RequestError
from pudica.strategies.core.recorder import Recorder
from pudica.strategies.core.reliable_grid import TooFewParticipants
from pudica.strategies.split.cloud import Cloud
from pudica.strategies.split.experiment import SplitExperiment


def central(experiment: SplitExperiment, devices: list[AssignedEdge]) -> nn.Module:
    """Return the model after plain SGD on the union of the devices' batches."""
    model, settings = whole(experiment).train(), experiment.split
    rate = settings.optimizer.learning_rate
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=settings.optimizer.momentum)
    for epoch in range(settings.epochs):
        sizes = [protocol.batch_sizes(len(d.train), settings.batch_size) for d in devices]
        for step in range(max(map(len, sizes))):
            there = [d for d, own in zip(devices, sizes, strict=True) if step < len(own)]
            parts = [d.train.batch(d._positions(epoch, step)) for d in there]
            x, y = (torch.cat(each) for each in zip(*parts, strict=True))
            optimizer.zero_grad()
            cross_entropy(model(x), y).backward()
            optimizer.step()
    return model


def assert_same(found: dict[str, torch.Tensor], wanted: nn.Module, within: float) -> None:
    for name, value in wanted.state_dict().items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=within)


# ------------------------------------------------------------------------- mathematics


@pytest.mark.parametrize("front", ["private", "average", "handoff"])
@pytest.mark.parametrize("optimizer", ["{learning_rate: 0.05}", "{momentum: 0.9}"])
def test_one_device_without_noise_trains_the_unsplit_model(
    tmp_path: Path, front: str, optimizer: str
) -> None:
    """Fifty steps: the last batch of an epoch is a short one."""
    experiment = tiny(
        "split.devices=1",
        f"split.front={front}",
        f"split.optimizer={optimizer}",
        "data.limit=75",
        "split.epochs=10",
    )
    run(experiment, tmp_path / "run")
    (device,) = edges(experiment, tmp_path / "run")
    expected = central(experiment, [device])
    found = model_of(tmp_path / "run")
    if front == "private":
        found |= device.front.layers.state_dict()
    assert_same(found, expected, 1e-6)


def test_the_devices_average_is_sgd_on_the_union_of_their_batches(tmp_path: Path) -> None:
    """With partitions of different sizes, the last of fewer images than a batch."""
    experiment = tiny(
        "split.devices=4",
        "split.front=average",
        "data.partition={scheme: exponential}",
        "split.epochs=5",
    )
    run(experiment, tmp_path / "run")
    devices = edges(experiment, tmp_path / "run")
    sizes = [len(device.train) for device in devices]
    assert len(set(sizes)) > 2
    assert min(sizes) < experiment.split.batch_size
    assert_same(model_of(tmp_path / "run"), central(experiment, devices), 1e-6)


def test_a_gradient_is_of_the_devices_own_mean_loss_whoever_else_is_there(tmp_path: Path) -> None:
    experiment = tiny("split.front=private", "split.epochs=1")
    grid = run(experiment, tmp_path / "run")
    model = whole(experiment)
    _, back = Cutter(model).cut("2")
    replies = [r for r in grid.replies if r.metadata.message_type == protocol.SMASH]
    sent = {r.metadata.src_node_id: r for r in reversed(replies)}  # each node's first
    returned = {
        m.metadata.dst_node_id: m
        for m in reversed(asked(grid, protocol.SMASH))
        if "gradient" in protocol.arrays_of(m.content)
    }
    assert len(returned) == 2
    for node, reply in sent.items():
        arrays = protocol.arrays_of(reply.content)
        smashed = torch.from_numpy(arrays["smashed"]).requires_grad_()
        cross_entropy(back(smashed), torch.from_numpy(arrays["labels"]).long()).backward()
        gradient = torch.from_numpy(protocol.arrays_of(returned[node].content)["gradient"])
        torch.testing.assert_close(gradient, smashed.grad, rtol=1e-4, atol=1e-7)


def test_with_a_frozen_front_messages_may_hold_any_number_of_batches(tmp_path: Path) -> None:
    for count in (1, 4):
        experiment = tiny("split.front=frozen", f"split.batches_per_message={count}")
        run(experiment, tmp_path / str(count))
    one, four = (model_of(tmp_path / str(count)) for count in (1, 4))
    assert all(torch.equal(one[name], four[name]) for name in one)


def test_several_batches_in_a_message_are_steps_with_gradients_at_the_old_front(
    tmp_path: Path,
) -> None:
    experiment = tiny(
        "split.devices=1", "split.front=private", "split.epochs=1", "split.batches_per_message=3"
    )
    run(experiment, tmp_path / "run")
    (device,) = edges(experiment, tmp_path / "run")
    model, rate = whole(experiment), experiment.split.optimizer.learning_rate
    front, back = Cutter(model).cut("2")
    for first in range(0, 6, 3):
        batches = [device.train.batch(device._positions(0, first + i)) for i in range(3)]
        smashed = [front(x) for x, _ in batches]
        gradients = []
        for z, (_, y) in zip(smashed, batches, strict=True):
            leaf = z.detach().requires_grad_()
            cross_entropy(back(leaf), y).backward()
            gradients.append(torch.autograd.grad(z, list(front.parameters()), leaf.grad))
            for parameter in back.parameters():
                parameter.data -= rate * parameter.grad
                parameter.grad = None
        for each in gradients:
            for parameter, gradient in zip(front.parameters(), each, strict=True):
                parameter.data -= rate * gradient
    found = model_of(tmp_path / "run") | device.front.layers.state_dict()
    assert_same(found, model, 1e-6)


def test_the_last_layer_alone_learns_if_that_is_wanted(tmp_path: Path) -> None:
    experiment = tiny("split.front=frozen", "split.train=last-layer", "split.epochs=1")
    run(experiment, tmp_path / "run")
    before, after = whole(experiment).state_dict(), model_of(tmp_path / "run")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"7.weight", "7.bias"}


def test_frozen_layers_do_not_move_whatever_they_are_made_of(tmp_path: Path) -> None:
    """Batch norm in a frozen front or before a last layer keeps its statistics."""
    settings = ["split.model=vgg-small", "split.cut='0.5'", "split.front=frozen"]
    experiment = tiny(*settings, "split.train=last-layer", "split.epochs=1")
    run(experiment, tmp_path / "run")
    before, after = whole(experiment).state_dict(), model_of(tmp_path / "run")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"1.2.weight", "1.2.bias"}


def test_a_frozen_fronts_shield_normalises_by_the_batch(tmp_path: Path) -> None:
    shield = "split.shield={name: batch-norm-laplace, epsilon: null}"
    grid = run(tiny(shield, "split.front=frozen", "split.epochs=1"), tmp_path / "run")
    for reply in grid.replies:
        if reply.metadata.message_type == protocol.SMASH:
            smashed = protocol.arrays_of(reply.content)["smashed"]
            moving = smashed.std(0) > 0.5
            assert moving.mean() > 0.5
            assert np.abs(smashed.mean(0)[moving]).max() < 1e-5
            assert np.median(np.abs(smashed.std(0)[moving] - 1)) < 0.01


def test_float16_on_the_wire_halves_the_bytes_and_learns_the_same(tmp_path: Path) -> None:
    sizes, losses = {}, {}
    for wire in ("float32", "float16"):
        experiment = tiny(f"split.wire={wire}", "split.front=private", "split.epochs=4")
        run(experiment, tmp_path / wire)
        sizes[wire] = sum(r["value"] for r in measured(tmp_path / wire, metric="bytes_up"))
        losses[wire] = measured(tmp_path / wire, stage="training", metric="loss")[-1]["value"]
    assert sizes["float16"] < 0.55 * sizes["float32"]
    assert losses["float16"] == pytest.approx(losses["float32"], rel=0.01)


def test_tiny_gradients_survive_float16(tmp_path: Path) -> None:
    from pudica.strategies.split.devices import ROOM, Devices

    experiment = tiny("split.wire=float16")
    devices = Devices.__new__(Devices)
    devices.settings = experiment.split
    gradient = torch.tensor([[1e-9, -3e-10, 0.0]])
    config, arrays = devices.gradient(gradient, 0)
    values = torch.from_numpy(protocol._decoded(arrays["gradient"])).float() / config["scale"]
    torch.testing.assert_close(values, gradient, rtol=1e-3, atol=0)
    assert np.abs(protocol._decoded(arrays["gradient"])).max() <= ROOM


def test_bytes_on_the_wire_are_those_of_the_payload(tmp_path: Path) -> None:
    experiment = tiny("split.front=frozen", "split.epochs=1", "split.cut='0'")
    grid = run(experiment, tmp_path / "run")
    sent, payload = 0, 0
    for reply in grid.replies:
        if reply.metadata.message_type == protocol.SMASH:
            sent += protocol.payload_bytes(reply.content)
            arrays = protocol.arrays_of(reply.content)
            payload += sum(array.nbytes for array in arrays.values())
    assert 1 < sent / payload <= 1.02


# -------------------------------------------------------------------------- who sees what


def test_labels_and_activations_stay_together_and_with_their_device(tmp_path: Path) -> None:
    experiment = tiny("split.devices=3", "split.front=frozen", "split.epochs=1")
    grid = run(experiment, tmp_path / "run")
    front, _ = Cutter(whole(experiment)).cut("2")
    devices = edges(experiment, tmp_path / "run")
    seen = {device.assignment.partition: [] for device in devices}
    for reply in grid.replies:
        if reply.metadata.message_type == protocol.SMASH:
            partition = grid.partition[reply.metadata.src_node_id]
            seen[partition].append(protocol.arrays_of(reply.content))
    for device in devices:
        arrays = seen[device.assignment.partition]
        for step, sent in enumerate(arrays):
            x, y = device.train.batch(device._positions(0, step))
            assert np.array_equal(sent["labels"], y.numpy())
            torch.testing.assert_close(torch.from_numpy(sent["smashed"]), front(x).detach())
        assert sum(len(sent["labels"]) for sent in arrays) == len(device.train)


def test_every_example_of_an_epoch_is_sent_once(tmp_path: Path) -> None:
    experiment = tiny("split.devices=1", "data.limit=65")
    run(experiment, tmp_path / "run")
    (device,) = edges(experiment, tmp_path / "run")
    positions = [device._positions(1, step) for step in range(5)]
    assert sorted(np.concatenate(positions)) == list(range(65))
    assert [len(p) for p in positions] == [16, 16, 16, 15, 2]


def test_no_message_holds_a_private_front_a_test_label_or_a_key(tmp_path: Path) -> None:
    experiment = tiny(
        "split.front=private",
        "split.noise=secret",
        "split.shield={name: clip-gaussian, epsilon: 3}",
        "split.validate_every=1",
    )
    grid = run(experiment, tmp_path / "run")
    devices = edges(experiment, tmp_path / "run")
    fronts = [d.front.layers.state_dict()["0.weight"].numpy().tobytes() for d in devices]
    keys = [(d.vault.root / "noise.key").read_bytes() for d in devices]
    labels = [d.images("test").labels for d in devices]
    for message in [*grid.requests, *grid.replies]:
        raw = b"".join(
            array.data
            for record in message.content.array_records.values()
            for array in record.values()
        )
        assert not any(secret in raw for secret in [*fronts, *keys])
        if message.metadata.message_type.startswith("evaluate"):
            for name, values in protocol.arrays_of(message.content).items():
                for own in labels:
                    assert name == "predictions" or not np.array_equal(values.ravel(), own)
    assert len(set(keys)) == 2
    for device in devices:
        assert stat.S_IMODE((device.vault.root / "noise.key").stat().st_mode) == 0o600


def test_secret_noise_hangs_on_what_it_hides(tmp_path: Path) -> None:
    """Asked again for the same a device says the same; under another front it draws anew."""
    shield = "split.shield={name: pixel-laplace, epsilon: 1}"
    experiment = tiny("split.front=private", "split.noise=secret", shield)
    run(experiment, tmp_path / "run")
    device = edges(experiment, tmp_path / "run")[0]
    first, again = (device.smash(0, 0, 1, 0)[0] for _ in range(2))
    assert np.array_equal(first, again)
    other = device.smash(1, 0, 1, 0)[0]
    assert not np.array_equal(first, other)
    x = device.train.batch(device._positions(0, 0))[0]
    plain = [device.front.shield.bounded(device.front(x)).detach().numpy()]
    next(device.front.parameters()).data.mul_(1.001)
    moved = device.smash(0, 0, 1, 0)[0]
    plain.append(device.front.shield.bounded(device.front(x)).detach().numpy())
    noises = first - plain[0], moved - plain[1]
    assert abs(np.corrcoef(noises[0].ravel(), noises[1].ravel())[0, 1]) < 0.1


def test_seeded_noise_is_fresh_in_each_batch_and_on_each_device(tmp_path: Path) -> None:
    experiment = tiny("split.front=frozen", "split.shield={name: clip-gaussian, epsilon: 1}")
    run(experiment, tmp_path / "run")
    noises = []
    for device in edges(experiment, tmp_path / "run"):
        for epoch, step in ((0, 0), (0, 1), (1, 0)):
            x = device.train.batch(device._positions(epoch, step))[0]
            shield = device.front.shield
            steps = shield.round_to_grid(device.front(x)).numpy()
            noises.append(device.smash(epoch, step, 1, 0)[0].ravel() - steps.ravel())
    correlations = np.corrcoef(noises) - np.eye(len(noises))
    assert np.abs(correlations).max() < 0.1


# ------------------------------------------------------------------- release once, budget


def test_once_means_once(tmp_path: Path) -> None:
    experiment = tiny(
        "split.front=frozen", "split.release=once", "split.batches_per_message=2", "split.epochs=6"
    )
    grid = run(experiment, tmp_path / "run")
    assert len(asked(grid, protocol.SMASH)) == 2 * 2  # 3 batches a device, 2 to a message
    assert not any("gradient" in protocol.arrays_of(m.content) for m in grid.requests)
    losses = [row["value"] for row in measured(tmp_path / "run", stage="training", metric="loss")]
    assert len(losses) == 6
    assert losses[-1] < losses[0]


def test_one_message_per_device_is_enough(tmp_path: Path) -> None:
    experiment = tiny("split.front=frozen", "split.release=once", "split.batches_per_message=1000")
    grid = run(experiment, tmp_path / "run")
    assert len(asked(grid, protocol.SMASH)) == 2


@pytest.mark.parametrize("stop", [(protocol.SMASH, 4), (protocol.SMASH, 6), (protocol.WHOLE, 1)])
def test_what_was_released_once_is_used_as_it_is_after_a_kill(
    tmp_path: Path, stop: tuple[str, int]
) -> None:
    """With a shield that remembers statistics, which the last measurements need."""
    experiment = tiny(
        "split.front=frozen",
        "split.release=once",
        "split.shield={name: batch-norm-laplace, epsilon: 50}",
        "split.epochs=3",
        "split.validate_every=2",
    )
    with pytest.raises(Interrupted):
        run(experiment, tmp_path / "killed" / "run", stop=stop)
    pudica.clients.app._nodes.clear()
    run(experiment, tmp_path / "killed" / "run")
    run(experiment, tmp_path / "whole" / "run")
    plain = [r for r in rows_of(tmp_path / "whole" / "run") if '"costs"' not in r]
    assert [r for r in rows_of(tmp_path / "killed" / "run") if '"costs"' not in r] == plain
    assert sum('"validation"' in row and '"cloud"' in row for row in plain) == 2 * 2


def test_a_device_that_fails_once_is_asked_again_for_its_release(tmp_path: Path) -> None:
    experiment = tiny("split.front=frozen", "split.release=once")
    run(experiment, tmp_path / "run", faults={(protocol.SMASH, 1, 2)})
    files = (tmp_path / "run" / "main").glob("released-*.safetensors")
    assert len(list(files)) == 2


BUDGET = [
    "split.front=frozen",
    "split.shield={name: clip-gaussian, epsilon: 1}",
    "split.budget={epsilon: 3}",
]


def front_of(device: Edge) -> torch.Tensor:
    """Return a device's front as it would travel."""
    return torch.from_numpy(packing.pack(packing.state_tensors(device.front)))


@pytest.mark.parametrize("noise", ["seeded", "secret"])
def test_a_device_refuses_to_go_past_its_budget(tmp_path: Path, noise: str) -> None:
    run(tiny(*BUDGET, f"split.noise={noise}"), tmp_path / "run")
    device = edges(tiny(), tmp_path / "run")[0]
    assert device.assignment.releases == 2
    with pytest.raises(BudgetExhausted, match=r"the budget is exhausted: .* may leave 2 times"):
        device.smash(2, 0, 1, 9)
    device.smash(1, 0, 1, 9)  # what has left already is no new release
    with pytest.raises(RuntimeError, match="the front is frozen, and stays as it is"):
        device.adopt({"front": front_of(device) + 1})


def test_the_budgets_noise_follows_from_the_number_of_releases(tmp_path: Path) -> None:
    from pudica.clients.shields import build as shield_of
    from pudica.clients.shields.analytic import analytic_sigma
    from pudica.strategies.split.model import calibrate_shield

    scales = []
    for epochs in (1, 4):
        settings = tiny(*BUDGET, f"split.epochs={epochs}").split
        scales.append(shield_of(calibrate_shield(settings), (8,), 16).scale)
    assert scales[0] == pytest.approx(2 * analytic_sigma(3, 1e-5), rel=1e-3)
    assert scales[1] == pytest.approx(2 * scales[0], rel=1e-3)


def test_the_budget_outlives_the_process(tmp_path: Path) -> None:
    run(tiny(*BUDGET), tmp_path / "run")
    pudica.clients.app._nodes.clear()
    device = edges_anew(tmp_path / "run")
    device.catch_up()
    with pytest.raises(BudgetExhausted):
        device.smash(7, 0, 1, 9)


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 3},
        {"batch_size": 8},
        {"shield": {"name": "clip-gaussian", "epsilon": 9}},
        {"shield": {"name": "clip-gaussian", "epsilon": 1, "clip": 9}},
        {"data_seed": 4},
    ],
)
def test_a_budget_can_not_be_begun_anew_by_joining_with_other_settings(
    tmp_path: Path, change: dict
) -> None:
    run(tiny(*BUDGET, "split.noise=secret"), tmp_path / "run")
    device = edges(tiny(), tmp_path / "run")[0]
    values = {**device.assignment.model_dump(), **change}
    again = AssignedEdge(device.vault, EdgeAssignment.model_validate(values))
    with pytest.raises(RuntimeError, match=r"on other\s+terms; a budget can't be begun|exhausted"):
        again.releases.check()


def test_seeded_noise_does_not_make_other_settings_free(tmp_path: Path) -> None:
    run(tiny(*BUDGET), tmp_path / "run")
    device = edges(tiny(), tmp_path / "run")[0]
    values = {**device.assignment.model_dump(), "seed": 3}
    again = AssignedEdge(device.vault, EdgeAssignment.model_validate(values))
    again.adopt({"front": front_of(device)})
    with pytest.raises(BudgetExhausted):
        again.smash(0, 0, 1, 9)


def test_no_assignment_reaches_out_of_the_vault(tmp_path: Path) -> None:
    run(tiny(), tmp_path / "run")
    values = edges(tiny(), tmp_path / "run")[0].assignment.model_dump()
    with pytest.raises(ValueError, match="case"):
        EdgeAssignment.model_validate({**values, "case": "../../escaped"})


def edges_anew(directory: Path) -> AssignedEdge:
    """Return the first device as a fresh process makes it from its vault."""
    from pudica.clients import assignments
    from pudica.clients.runtime.vault import Vault

    vault = Vault(directory / "vault" / directory.name / "node-0")
    kept = vault.read("assignment.json")
    assert kept is not None
    return AssignedEdge(vault, assignments.parse_assignment(kept))  # type: ignore[arg-type]


# ----------------------------------------------------------------------------- evaluation


def test_device_and_cloud_classify_alike_without_noise(tmp_path: Path) -> None:
    learning = "split.optimizer={learning_rate: 0.1, momentum: 0.9}"
    experiment = tiny("split.plain_to_cloud=true", "split.epochs=4", "data.limit=300", learning)
    run(experiment, tmp_path / "run")
    found = {
        (row["classified"], row["node"]): row["value"]
        for row in measured(tmp_path / "run", stage="test", release="plain")
    }
    assert len(found) == 6
    for node in ("cloud", "device-0", "device-1"):
        assert found["edge", node] == found["cloud", node]
    assert found["edge", "cloud"] > 0.15


@pytest.mark.slow
def test_every_image_is_judged_by_its_own_prediction(tmp_path: Path) -> None:
    """Over several messages, the last of them a short one."""
    experiment = tiny(
        "split.plain_to_cloud=true",
        "split.batch_size=4",
        "split.epochs=6",
        "split.optimizer={learning_rate: 0.1}",
        "data.limit=null",
        "split.devices=1",
    )
    run(experiment, tmp_path / "run")
    (device,) = edges(experiment, tmp_path / "run")
    assert len(device.images("test")) > 2 * 32
    found = [r["value"] for r in measured(tmp_path / "run", stage="test", node="cloud")]
    assert len(set(found)) == 1
    assert found[0] > 0.5


def test_a_device_says_how_many_were_right_of_all_images_only(tmp_path: Path) -> None:
    run(tiny(), tmp_path / "run")
    device = edges(tiny(), tmp_path / "run")[0]
    with pytest.raises(ValueError, match=r"predictions \(1,\).*for 12 test images"):
        device.count_correct(torch.zeros(1))


def test_test_images_come_in_whole_batches(tmp_path: Path) -> None:
    """In other batches each image would get other noise, and many could be averaged."""
    shield = "split.shield={name: clip-gaussian, epsilon: 1}"
    run(tiny(shield, "split.noise=secret", "data.limit=300"), tmp_path / "run")
    device = edges(tiny(), tmp_path / "run")[0]
    first, again = (device.features(0, 16, noisy=True) for _ in range(2))
    assert np.array_equal(first, again)
    for start, count in ((1, 16), (0, 15), (-16, 16), (0, 1000)):
        with pytest.raises(ValueError, match="are no whole batches of 16"):
            device.features(start, count, noisy=True)


def test_a_wrong_answer_at_the_end_is_a_dropout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Edge.evaluate

    def boasting(self: Edge, *arguments: object) -> dict:
        found = original(self, *arguments)  # type: ignore[arg-type]
        return {**found, "plain": 10_000} if self.assignment.partition else found

    monkeypatch.setattr(Edge, "evaluate", boasting)
    run(tiny(), tmp_path / "run")
    rows = measured(tmp_path / "run", stage="test", classified="edge", release="plain")
    assert {row["node"] for row in rows} == {"device-0", "cloud"}
    assert (
        "'plain' must be a whole number 0 to 12, is 10000"
        in (tmp_path / "run" / "events.log").read_text()
    )


def test_the_cloud_classifies_what_was_shielded(tmp_path: Path) -> None:
    experiment = tiny("split.shield={name: clip-gaussian, epsilon: 0.5}", "data.limit=300")
    grid = run(experiment, tmp_path / "run")
    rows = measured(tmp_path / "run", stage="test", node="cloud")
    assert {(r["classified"], r["release"]) for r in rows} == {
        ("edge", "plain"),
        ("edge", "noisy"),
        ("cloud", "noisy"),
    }
    sent = [r for r in grid.replies if r.metadata.message_type == protocol.FEATURES]
    arrays = [protocol.arrays_of(reply.content) for reply in sent]
    features = np.concatenate([a["features"].ravel() for a in arrays if "features" in a])
    device = edges(experiment, tmp_path / "run")[0]
    assert features.dtype == np.int16
    assert features.std() == pytest.approx(device.front.shield.grid.scale, rel=0.05)


def test_a_device_does_not_send_features_without_noise_unless_told_to(tmp_path: Path) -> None:
    run(tiny("split.shield={name: clip-laplace, epsilon: 1}"), tmp_path / "run")
    device = edges(tiny(), tmp_path / "run")[0]
    with pytest.raises(RuntimeError, match="without noise are not given away"):
        device.features(0, 4, noisy=False)


@pytest.mark.parametrize("front", ["private", "frozen"])
def test_a_device_that_missed_the_first_epochs_has_the_front_all_the_same(
    tmp_path: Path, front: str
) -> None:
    """It begins with it when something is measured."""
    away = {(protocol.SMASH, 1, number) for number in (1, 2, 3)}
    experiment = tiny(f"split.front={front}", "split.validate_every=1", "split.epochs=1")
    run(experiment, tmp_path / "run", faults=away)
    rows = measured(tmp_path / "run", stage="test", classified="edge", release="plain")
    assert {row["node"] for row in rows} == {"device-0", "device-1", "cloud"}


def test_private_fronts_are_measured_each_with_its_own(tmp_path: Path) -> None:
    experiment = tiny("split.front=private", "split.epochs=3")
    grid = run(experiment, tmp_path / "run")
    assert not any("front" in protocol.arrays_of(m.content) for m in asked(grid, protocol.WHOLE))
    first, second = (d.front.layers.state_dict() for d in edges(experiment, tmp_path / "run"))
    assert any(not torch.equal(first[name], second[name]) for name in first)


# ---------------------------------------------------------------------- faults, restarts


@pytest.mark.parametrize("front", ["average", "private", "handoff", "frozen"])
def test_a_device_may_drop_out_and_return(tmp_path: Path, front: str) -> None:
    experiment = tiny(f"split.front={front}", "split.epochs=3")
    grid = run(experiment, tmp_path / "run", faults={(protocol.SMASH, 1, 2)})
    told = (tmp_path / "run" / "events.log").read_text()
    assert told.count("dropout: device-1: RuntimeError: not today") == 1
    (row,) = measured(tmp_path / "run", metric="dropouts")
    assert (row["node"], row["value"], row["round"]) == ("device-1", 1, 1)
    asked_of_it = [m for m in asked(grid, protocol.SMASH) if grid.partition[m.metadata.dst_node_id]]
    assert len(asked_of_it) >= 9
    losses = measured(tmp_path / "run", stage="training", metric="loss")
    assert losses[-1]["value"] < losses[0]["value"]


def test_too_few_devices_stop_the_run_and_it_goes_on_later(tmp_path: Path) -> None:
    experiment = tiny("split.min_devices=2", "split.epochs=1")
    away = {(protocol.SMASH, 0, number) for number in (1, 2, 3)}
    with pytest.raises(TooFewParticipants, match="the experiment needs 2"):
        run(experiment, tmp_path / "run", faults=away)
    run(experiment, tmp_path / "run")
    run(experiment, tmp_path / "undisturbed")
    one, other = (model_of(tmp_path / name) for name in ("run", "undisturbed"))
    assert all(torch.equal(one[name], other[name]) for name in one)


UNEVEN = ["split.devices=3", "data.partition={scheme: exponential}", "data.limit=160"]


@pytest.mark.parametrize("front", ["average", "private"])
def test_one_dropout_when_others_are_through_with_their_images_stops_nothing(
    tmp_path: Path, front: str
) -> None:
    experiment = tiny(*UNEVEN, f"split.front={front}")
    run(experiment, tmp_path / "run", faults={(protocol.SMASH, 2, 5)})
    sizes = [len(device.train) for device in edges(experiment, tmp_path / "run")]
    assert max(sizes[:2]) <= 4 * 16 < sizes[2]
    assert len(measured(tmp_path / "run", metric="dropouts")) == 1


@pytest.mark.parametrize("turn", [3, 4, 5, 6])
def test_a_killed_run_with_uneven_partitions_ends_as_if_it_had_not_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, turn: int
) -> None:
    """A device that is through with its images is not asked when the others checkpoint."""
    experiment = tiny(*UNEVEN, "split.front=private", "split.optimizer={momentum: 0.9}")
    with monkeypatch.context() as patch:
        due = iter([False] * (turn - 1) + [True] + [False] * 99)
        patch.setattr(Recorder, "is_checkpoint_due", lambda _: next(due))
        with pytest.raises(Interrupted):
            run(experiment, tmp_path / "killed" / "run", stop=(protocol.SMASH, 15))
        pudica.clients.app._nodes.clear()
        run(experiment, tmp_path / "killed" / "run")
    run(experiment, tmp_path / "whole" / "run")
    killed, undisturbed = (tmp_path / name / "run" for name in ("killed", "whole"))
    assert rows_of(killed) == rows_of(undisturbed)
    one, other = model_of(killed), model_of(undisturbed)
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("optimizer", ["{momentum: 0.9}", "{name: adam, learning_rate: 0.01}"])
def test_the_front_that_is_handed_on_takes_its_optimisers_state_along(
    tmp_path: Path, optimizer: str
) -> None:
    """One device after the other is what one device does that has all images in that order."""
    experiment = tiny("split.front=handoff", f"split.optimizer={optimizer}", "split.epochs=3")
    run(experiment, tmp_path / "run")
    model, config = whole(experiment).train(), experiment.split.optimizer
    learning = optimizers.build(config, model.parameters())
    assert learning is not None
    for epoch in range(3):
        for device in edges(experiment, tmp_path / "run"):
            for step in range(3):
                x, y = device.train.batch(device._positions(epoch, step))
                learning.zero_grad()
                cross_entropy(model(x), y).backward()
                learning.step()
    assert_same(model_of(tmp_path / "run"), model, 1e-5)


def test_averaging_several_unequal_batches_is_a_step_on_their_sum(tmp_path: Path) -> None:
    experiment = tiny(*UNEVEN, "split.batches_per_message=9", "split.epochs=1")
    run(experiment, tmp_path / "run")
    devices = edges(experiment, tmp_path / "run")
    model, rate = whole(experiment), experiment.split.optimizer.learning_rate
    front, back = Cutter(model).cut("2")
    sizes = [protocol.batch_sizes(len(d.train), 16) for d in devices]
    total = [torch.zeros_like(p) for p in front.parameters()]
    for step in range(max(map(len, sizes))):
        there = [d for d, own in zip(devices, sizes, strict=True) if step < len(own)]
        parts = [d.train.batch(d._positions(0, step)) for d in there]
        x, y = (torch.cat(each) for each in zip(*parts, strict=True))
        z = front(x)
        leaf = z.detach().requires_grad_()
        cross_entropy(back(leaf), y).backward()
        for part, gradient in zip(
            total, torch.autograd.grad(z, list(front.parameters()), leaf.grad), strict=True
        ):
            part += gradient
        for parameter in back.parameters():
            parameter.data -= rate * parameter.grad
            parameter.grad = None
    for parameter, gradient in zip(front.parameters(), total, strict=True):
        parameter.data -= rate * gradient
    assert_same(model_of(tmp_path / "run"), model, 1e-6)


def test_a_front_without_weights_needs_no_learning(tmp_path: Path) -> None:
    for front in ("average", "handoff", "private"):
        experiment = tiny("split.cut=input", f"split.front={front}", "split.epochs=1")
        grid = run(experiment, tmp_path / front)
        assert not any("gradient" in protocol.arrays_of(m.content) for m in grid.requests)


def test_a_device_that_failed_in_one_case_takes_part_in_the_next(tmp_path: Path) -> None:
    experiment = tiny("split.cases={a: {}, b: {}}", "split.epochs=1")
    grid = run(experiment, tmp_path / "run", faults={(protocol.SMASH, 1, n) for n in (1, 2, 3)})
    asked_in_b = [m for m in asked(grid, protocol.SMASH) if m.content["config"]["case"] == "b"]
    assert {grid.partition[m.metadata.dst_node_id] for m in asked_in_b} == {0, 1}


def test_cases_whose_names_begin_alike_do_not_meet_in_the_vault(tmp_path: Path) -> None:
    experiment = tiny("split.cases={a-front-b: {}, a: {}}", "split.front=private")
    run(experiment, tmp_path / "run")
    assert len(measured(tmp_path / "run", stage="test", node="cloud", release="plain")) == 2


STOPS = [
    ("average", (protocol.SMASH, 3)),
    ("average", (protocol.FRONT_GRADIENT, 8)),
    ("private", (protocol.SMASH, 4)),
    ("private", (protocol.SMASH, 9)),
    ("private", (protocol.WHOLE, 1)),
    ("private", (protocol.WHOLE, 3)),
    ("private", (protocol.FEATURES, 2)),
    ("handoff", (protocol.SMASH, 2)),
    ("handoff", (protocol.SMASH, 5)),
    ("handoff", (protocol.FRONT, 2)),
    ("frozen", (protocol.SMASH, 7)),
]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[SplitExperiment], Path]:
    """Runs that nothing happens to, each made once."""
    made: dict[str, Path] = {}

    def make(experiment: SplitExperiment) -> Path:
        key = experiment.model_dump_json()
        if key not in made:
            made[key] = tmp_path_factory.mktemp("undisturbed") / "run"
            run(experiment, made[key])
        return made[key]

    return make


@pytest.mark.parametrize(("front", "stop"), STOPS)
@pytest.mark.parametrize("often", [True, False])
def test_a_run_that_was_killed_ends_as_if_it_had_not_been(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    undisturbed: Callable[[SplitExperiment], Path],
    front: str,
    stop: tuple[str, int],
    often: bool,
) -> None:
    """Checkpoints at every turn, or none but after finished tasks; devices begin anew."""
    monkeypatch.setattr("pudica.strategies.core.recorder.CHECKPOINT_SECONDS", 0.0 if often else 1e9)
    experiment = tiny(
        f"split.front={front}",
        "split.shield={name: batch-norm-laplace, epsilon: 5}",
        "split.optimizer={name: adam, learning_rate: 0.01}",
        "split.validate_every=1",
    )
    with pytest.raises(Interrupted):
        run(experiment, tmp_path / "killed" / "run", stop=stop)
    pudica.clients.app._nodes.clear()
    killed, whole_run = tmp_path / "killed" / "run", undisturbed(experiment)
    run(experiment, killed)
    assert rows_of(killed) == rows_of(whole_run)
    one, other = model_of(killed), model_of(whole_run)
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("stop", [(protocol.SMASH, 1), (protocol.SMASH, 3), (protocol.WHOLE, 3)])
def test_a_killed_run_releases_nothing_twice(tmp_path: Path, stop: tuple[str, int]) -> None:
    experiment = tiny(*BUDGET, "split.release=once", "split.noise=secret", "split.validate_every=1")
    with pytest.raises(Interrupted):
        run(experiment, tmp_path / "run", stop=stop)
    pudica.clients.app._nodes.clear()
    run(experiment, tmp_path / "run")
    device = edges(experiment, tmp_path / "run")[0]
    paid = [e for e in Odometer(device.vault).entries() if e.release.what == ACTIVATIONS]
    assert [(e.release.part, e.release.case) for e in paid] == [("train", "main")]


@pytest.mark.parametrize("stop", [(protocol.SMASH, 9), (protocol.SMASH, 26)])
def test_a_killed_run_goes_back_several_epochs_for_nothing(
    tmp_path: Path, stop: tuple[str, int]
) -> None:
    """Checkpoints are taken every so many seconds: what was released since is asked for again."""
    experiment = tiny(*BUDGET, "split.noise=secret", "split.epochs=5")
    with pytest.raises(Interrupted):
        run(experiment, tmp_path / "run", stop=stop)
    pudica.clients.app._nodes.clear()
    run(experiment, tmp_path / "run")
    for device in edges(experiment, tmp_path / "run"):
        paid = [e for e in Odometer(device.vault).entries() if e.release.what == ACTIVATIONS]
        assert len(paid) == 5


def test_a_device_in_a_fresh_process_for_each_message_does_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As deployed: nothing but the vault outlives a message."""
    for front in ("average", "private", "handoff"):
        experiment = tiny(f"split.front={front}", "split.optimizer={momentum: 0.9}")
        run(experiment, tmp_path / front / "lasting")
        with monkeypatch.context() as patch:
            patch.setattr("pudica.strategies.core.session.LASTING", ())
            original = pudica.clients.app._node

            def fresh(*arguments: object, original: object = original) -> object:
                pudica.clients.app._nodes.clear()
                return original(*arguments)  # type: ignore[operator]

            patch.setattr(pudica.clients.app, "_node", fresh)
            run(experiment, tmp_path / front / "fresh")
        one, other = (model_of(tmp_path / front / name) for name in ("lasting", "fresh"))
        assert all(torch.equal(one[name], other[name]) for name in one)


# ------------------------------------------------------------------------------ bad input


def bad_reply(change: str) -> object:
    """Return a stand-in for ``Edge.smash`` that sends something wrong once."""
    original, calls = Edge.smash, []

    def smash(self: Edge, epoch: int, step: int, count: int, turn: int) -> object:
        smashed, labels, seconds = original(self, epoch, step, count, turn)
        calls.append(1)
        if self.assignment.partition == 1 and len(calls) < 4:
            if change == "shape":
                smashed = smashed[:-1]
            elif change == "type":
                smashed = smashed.astype(np.float64)
            elif change == "nan":
                smashed = smashed * np.nan
            elif change == "class":
                labels = labels + 10
            elif change == "labels":
                labels = labels[:-1]
        return smashed, labels, seconds

    return smash


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ("shape", "smashed of shape (15, 8, 4, 4) and type float32, (16, 8, 4, 4)"),
        ("type", "smashed of shape (16, 8, 4, 4) and type float64"),
        ("nan", "smashed with NaN, infinity"),
        ("class", "a label outside 0 to 9: a class that the cloud doesn't have"),
        ("labels", "labels of shape (15,)"),
    ],
)
def test_a_wrong_answer_is_a_dropout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str, why: str
) -> None:
    monkeypatch.setattr(Edge, "smash", bad_reply(change))
    run(tiny("split.front=average"), tmp_path / "run")
    assert why in (tmp_path / "run" / "events.log").read_text()
    losses = measured(tmp_path / "run", stage="training", metric="loss")
    assert losses[-1]["value"] < losses[0]["value"]


@pytest.mark.parametrize(
    "change",
    [
        lambda state: {**state, "optimizer/9/exp_avg": np.zeros(3, np.float32)},
        lambda state: {**state, "optimizer/0/exp_avg_sq": -1 - state["optimizer/0/exp_avg_sq"]},
        lambda state: {k: v for k, v in state.items() if k != "optimizer/0/step"},
        lambda state: {**state, "optimizer/1/exp_avg": np.zeros((9, 9), np.float32)},
    ],
)
def test_a_front_that_the_next_device_could_not_use_is_not_handed_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Any
) -> None:
    original = Edge.return_front

    def hostile(self: Edge) -> dict[str, np.ndarray]:
        kept = original(self)
        return change(kept) if self.assignment.partition == 0 else kept

    monkeypatch.setattr(Edge, "return_front", hostile)
    run(tiny("split.front=handoff", "split.front_optimizer={name: adam}"), tmp_path / "run")
    told = (tmp_path / "run" / "events.log").read_text()
    assert "device-0 did not hand on the front" in told
    assert "dropout: device-1" not in told


def test_an_activation_that_can_not_be_protected_names_layer_and_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Edge._positions

    def poisoned(self: Edge, epoch: int, step: int) -> np.ndarray:
        if self.assignment.partition == 1 and (epoch, step) == (0, 1):
            next(self.front.parameters()).data.fill_(float("nan"))
        return original(self, epoch, step)

    monkeypatch.setattr(Edge, "_positions", poisoned)
    run(tiny("split.shield={name: pixel-laplace, epsilon: 1}"), tmp_path / "run")
    told = (tmp_path / "run" / "events.log").read_text()
    assert "device-1: the activation after '2': holds NaN or infinity" in told


def test_a_gradient_of_the_wrong_shape_is_refused(tmp_path: Path) -> None:
    experiment = tiny("split.front=private")
    run(experiment, tmp_path / "run")
    device = edges(experiment, tmp_path / "run")[0]
    device.smash(0, 0, 1, 4)
    with pytest.raises(ValueError, match=r"a gradient of shape \(3, 2\)"):
        device.learn(torch.zeros(3, 2), 1.0, 4)


def test_divergence_is_said() -> None:
    experiment = tiny()
    back = nn.Linear(4, 10)
    cloud = Cloud(back, experiment.split, Compute(experiment.client), 0, returns=True)
    with pytest.raises(RuntimeError, match="training has diverged; lower"):
        cloud.step(torch.full((2, 4), torch.inf), torch.zeros(2, dtype=torch.int64), 3, 0)


def test_a_device_whose_vault_was_emptied_says_so(tmp_path: Path) -> None:
    experiment = tiny("split.front=private")
    run(experiment, tmp_path / "run")
    device = edges_anew(tmp_path / "run")
    with pytest.raises(RuntimeError, match="this device has no front: it was given none"):
        device.smash(0, 0, 1, 0)
    device.catch_up()
    device.smash(0, 0, 1, 0)


def test_a_turn_that_was_kept_and_not_answered_is_taken_again(tmp_path: Path) -> None:
    """A node may be killed between the two; it is as if it had answered at once."""
    run(
        tiny("split.front=private", "split.shield={name: batch-norm-laplace, epsilon: 5}"),
        tmp_path / "run",
    )
    before = edges_anew(tmp_path / "run").snapshots.newest()

    def answered(turn: int, of: int | None) -> list[np.ndarray]:
        device = edges_anew(tmp_path / "run")
        device.begin(turn, of)
        if device.pending:
            like = device._recompute(device.pending)[0].protected
            gradient = torch.linspace(-0.01, 0.01, like.numel()).view_as(like)
            device.learn(gradient, 1.0, turn - 2)
        smashed, _, _ = device.smash(1, 0, 1, turn)
        device.keep(turn, turn - 2)
        return [smashed, front_of(device).numpy()]

    answered(before + 2, None)
    second = answered(before + 4, before + 2)
    for ours, wanted in zip(answered(before + 4, before + 2), second, strict=True):
        assert np.array_equal(ours, wanted)
    assert not np.array_equal(answered(before + 6, before + 4)[0], second[0])


WRONG = [
    ("split.cut=nowhere", "unknown cut 'nowhere'"),
    ("split.shield={name: clip-laplace, epsilon: 0}", "must be above 0"),
    ("split.shield={name: clip-gaussian, epsilon: 1, delta: 1}", "must be above 0 and below 1"),
    ("split.shield={name: clip}", "unknown shield 'clip'. Did you mean 'clip-"),
    ("split.shield={name: clip-laplace, epsilon: 1, clap: 2}", "unknown key 'clap'. Did you mean"),
    ("split.shield=3", "must be a section with a name; allowed: batch-norm-laplace"),
    ("split.release=once", "release: 'once' needs front: frozen, is 'average'"),
    ("split.budget={epsilon: 3}", "budget: needs front: frozen"),
    ("split.train=last-layer", "needs front: frozen"),
    ("split.weights=pretrained", "needs a section pretraining"),
    ("split.weights=nowhere.safetensors", "weights: there is no file"),
    ("split.optimizer={name: adam, momentum: 0.9}", "'adam' has no momentum setting"),
    ("split.dropouts=2", "dropouts: 2 of 2 devices; allowed: 0 to 1"),
    ("split.min_devices=3", "min_devices: 3, but at most 2"),
    ("split.cases={a: {devices: 3}}", "case 'a': devices is shared by all cases"),
    ("split.cases={a: {shield.epsilon: 3}}", "unknown key 'epsilon'"),
]


@pytest.mark.parametrize(("setting", "why"), WRONG)
def test_wrong_settings_are_explained(setting: str, why: str) -> None:
    with pytest.raises(RequestError) as caught:
        tiny(setting).check()
    assert why in str(caught.value)
    assert "split" in str(caught.value)


def test_a_batch_of_one_has_no_batch_norm() -> None:
    shield = "split.shield={name: batch-norm-laplace, epsilon: 1}"
    with pytest.raises(RequestError, match="needs batches of at least 2 examples, got 1"):
        tiny(shield, "split.batch_size=1").check()


def test_a_cut_inside_a_branch_lists_those_that_there_are() -> None:
    with pytest.raises(RequestError, match=r"can't be cut after '1\.0\.\w+'.*allowed: 0\.0"):
        tiny("split.model=resnet-8", "split.cut=1.0.conv1").check()


def test_a_budget_for_fewer_releases_than_there_are_is_refused() -> None:
    with pytest.raises(RequestError, match=r"budget\.releases: 1, but 2 epochs release each"):
        tiny(*BUDGET, "split.budget.releases=1")


def test_cases_change_single_settings(tmp_path: Path) -> None:
    experiment = tiny(
        "split.shield={name: clip-laplace, epsilon: 1}",
        "split.cases={weak: {shield.epsilon: 100}, none: {shield: {name: none}}}",
        "split.epochs=1",
    )
    run(experiment, tmp_path / "run")
    cases = experiment.split.each_case()
    assert [case.shield.model_dump() for case in cases.values()] == [
        {"name": "clip-laplace", "epsilon": 100.0, "clip": 1.0},
        {"name": "none"},
    ]
    assert {row["case"] for row in measured(tmp_path / "run", stage="test")} == {"weak", "none"}
