"""Models from outside: import paths, and exported programs that bring nothing to execute."""

from __future__ import annotations

import copy
import io
import json
import pickle
import sys
import types
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from pudica.clients.assignments import ParticipantConfig
from pudica.models import build, describe, display_name, is_frozen, minimum_side
from pudica.models.custom import resolve_model_path
from pudica.models.errors import RequestError

PROGRAM = "models/model.json"


def export(
    path: Path, model: nn.Module, *, shape: tuple[int, ...] = (2, 1, 8, 8), dynamic: bool = True
) -> str:
    batch = ({0: torch.export.Dim("batch")},) if dynamic else None
    program = torch.export.export(model, (torch.zeros(shape),), dynamic_shapes=batch)
    torch.export.save(program, path)
    return str(path)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> str:
    model = build("cnn-small", num_classes=10, channels=1, image_size=8, seed=3)
    return export(tmp_path_factory.mktemp("programs") / "net.pt2", model.eval())


def load(path: str, **other: int) -> nn.Module:
    return build(path, **({"num_classes": 10, "channels": 1, "image_size": 8} | other))


def tampered(
    source: str, target: Path, change: Callable[[str, bytes], bytes], **added: bytes
) -> str:
    """Copy an archive with changed members (`change` sees their names) and new ones."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        root = old.namelist()[0].split("/")[0]
        for member in old.namelist():
            new.writestr(member, change(member.removeprefix(f"{root}/"), old.read(member)))
        for member, content in added.items():
            new.writestr(f"{root}/{member}", content)
    return str(target)


def unchanged(_: str, content: bytes) -> bytes:
    return content


@pytest.fixture
def own_module(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    module = types.ModuleType("somebodys_models")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


def linear(*, num_classes: int, channels: int, image_size: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * image_size**2, num_classes))


def test_import_path_is_called_with_the_task_and_the_seed(own_module: types.ModuleType) -> None:
    own_module.net = linear
    first, again, other = (
        load("custom:somebodys_models:net", seed=seed)[1].weight for seed in (1, 1, 2)
    )
    assert first.shape == (10, 64)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not is_frozen(load("custom:somebodys_models:net"))


SOURCE = """
import math
from dataclasses import dataclass
from torch import nn

@dataclass
class Width:
    value: int = {width}

def network(num_classes: int, channels: int, image_size: int) -> nn.Module:
    inner = Width().value
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * image_size**2, inner), nn.ReLU(),
                         nn.Linear(inner, num_classes))
"""


def test_a_file_is_loaded_by_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it is called, wherever it lies, and as it is now."""
    for number, name in enumerate(("models.py", "pudica.py", "torch.py", "a b.py"), 3):
        (tmp_path / name).write_text(SOURCE.format(width=number))
        assert load(f"custom:{tmp_path / name}:network")[1].out_features == number
        monkeypatch.chdir(tmp_path)
        assert load(f"custom:./{name}:network")[1].out_features == number
    (tmp_path / "models.py").write_text(SOURCE.format(width=9))
    assert load("custom:models.py:network")[1].out_features == 9


def test_two_files_of_one_name_are_two_modules(tmp_path: Path) -> None:
    for number, folder in enumerate(("a", "b"), 3):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "net.py").write_text(SOURCE.format(width=number))
    first, second = (load(f"custom:{tmp_path / f / 'net.py'}:network") for f in "ab")
    assert (first[1].out_features, second[1].out_features) == (3, 4)


def test_a_file_in_settings_is_the_same_in_any_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, wanted in {
        "custom:./net.py:network": f"custom:{tmp_path}/net.py:network",
        "custom:sub/net.py:network": f"custom:{tmp_path}/sub/net.py:network",
        "custom:package.net:network": "custom:package.net:network",
        "net.pt2": f"{tmp_path}/net.pt2",
        "resnet-8": "resnet-8",
        "torchvision:vgg11": "torchvision:vgg11",
    }.items():
        assert Path(ParticipantConfig(model=name).model) == Path(wanted)
    assert resolve_model_path("custom:net.py:f", Path("/else")) == "custom:/else/net.py:f"


@pytest.mark.parametrize(
    ("content", "attribute", "message"),
    [
        (None, "net", "No such file"),
        ("def net(:", "net", "fails: SyntaxError"),
        ("import a_module_that_nobody_has", "net", "fails: ModuleNotFoundError.*installed"),
        ("1 / 0", "net", "fails: ZeroDivisionError"),
        ("net = 3", "net", "'net' is not callable"),
        ("net = 3", "other", "'other' does not exist"),
        ("net = 3", "", "must be written custom:FILE.py:callable"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(
    tmp_path: Path, content: str | None, attribute: str, message: str
) -> None:
    path = tmp_path / "net.py"
    if content is not None:
        path.write_text(content)
    for _ in range(2):
        with pytest.raises(RequestError, match=message) as caught:
            load(f"custom:{path}:{attribute}")
        assert str(path) in str(caught.value)


def test_names_from_outside_have_names_too() -> None:
    assert display_name("custom:somebodys_models:net") == "somebodys_models:net"
    assert display_name("custom:./some/where/team_green.py:net") == "team_green:net"
    assert display_name("some/where/net.pt2") == "net"
    assert "frozen" in describe("net.pt2")
    assert minimum_side("net.pt2") == 1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("custom:somebodys_models", "must be written custom:FILE.py:callable or custom:package"),
        ("custom:no_such_module:net", "cannot import 'no_such_module'.*on PYTHONPATH"),
        ("custom:somebodys_models:absent", "'absent' does not exist in 'somebodys_models'"),
        ("custom:somebodys_models:constant", "'constant' is not callable"),
        ("custom:somebodys_models:text", "must return a torch.nn.Module, got str"),
        ("custom:somebodys_models:bare", "must accept the keyword arguments num_classes"),
        ("custom:somebodys_models:narrow", "to logits of 2x10, got 2x3"),
        ("custom:somebodys_models:broken", "fails on images of 2x1x8x8"),
    ],
)
def test_wrong_import_is_named(own_module: types.ModuleType, name: str, message: str) -> None:
    own_module.constant = 3
    own_module.text = lambda **_: "net"
    own_module.bare = lambda: linear(num_classes=2, channels=1, image_size=8)
    own_module.narrow = lambda **task: linear(**(task | {"num_classes": 3}))
    own_module.broken = lambda **task: linear(**(task | {"channels": 5}))
    with pytest.raises(RequestError, match=message) as caught:
        load(name)
    assert name in str(caught.value)


def test_program_computes_what_was_exported(exported: str) -> None:
    original = build("cnn-small", num_classes=10, channels=1, image_size=8, seed=3).eval()
    program = load(exported)
    for batch in (1, 5):
        images = torch.rand(batch, 1, 8, 8, generator=torch.Generator().manual_seed(batch))
        torch.testing.assert_close(program(images), original(images))


def test_program_has_input_gradients_and_is_frozen(exported: str) -> None:
    original = build("cnn-small", num_classes=10, channels=1, image_size=8, seed=3).eval()
    program = load(exported).train()
    assert is_frozen(program)
    assert not program.training
    assert not any(parameter.requires_grad for parameter in program.parameters())
    gradients = []
    for model in (original, program, copy.deepcopy(program)):
        images = torch.full((3, 1, 8, 8), 0.5, requires_grad=True)
        gradients.extend(torch.autograd.grad(model(images).square().sum(), images))
    torch.testing.assert_close(gradients[1], gradients[0])
    torch.testing.assert_close(gradients[2], gradients[0])


@pytest.mark.parametrize("name", ["resnet-8", "preresnet-8", "densenet-small", "cnn-separable"])
def test_models_of_the_zoo_survive_an_export(name: str, tmp_path: Path) -> None:
    model = build(name, num_classes=10, channels=1, image_size=8).eval()
    images = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    program = load(export(tmp_path / "net.pt2", model))
    torch.testing.assert_close(program(images), model(images))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"channels": 3}, "takes images of 1x8x8, this experiment needs 3x8x8"),
        ({"image_size": 32}, "takes images of 1x8x8, this experiment needs 1x32x32"),
        ({"num_classes": 3}, "to logits of 2x3, got 2x10"),
    ],
)
def test_program_for_another_task_is_refused(
    exported: str, other: dict[str, int], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        load(exported, **other)


def test_program_with_a_fixed_batch_is_refused(tmp_path: Path) -> None:
    model = build("softmax", num_classes=10, channels=1, image_size=8).eval()
    path = export(tmp_path / "fixed.pt2", model, dynamic=False)
    with pytest.raises(RequestError, match=r"batches of exactly 2.*dynamic_shapes"):
        load(path)


def test_program_in_training_mode_is_refused(tmp_path: Path) -> None:
    model = build("cnn-small", num_classes=10, channels=1, image_size=8).train()
    with pytest.raises(RequestError, match=r"training mode.*call model.eval\(\)"):
        load(export(tmp_path / "train.pt2", model))


def test_missing_and_broken_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"absent\.pt2' does not exist"):
        load(str(tmp_path / "absent.pt2"))
    broken = tmp_path / "broken.pt2"
    broken.write_bytes(b"not an archive")
    with pytest.raises(RequestError, match=r"broken\.pt2' cannot be read"):
        load(str(broken))


class Bomb:
    """Leaves a trace where it is unpickled."""

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return (exec, ("import sys; sys.bomb_went_off = True",))


def pickled() -> bytes:
    content = io.BytesIO()
    torch.save((Bomb(),), content, pickle_module=pickle)
    return content.getvalue()


@pytest.fixture
def no_bomb() -> Iterator[None]:
    yield
    assert not hasattr(sys, "bomb_went_off")


def test_tampering_by_itself_does_not_break_an_archive(exported: str, tmp_path: Path) -> None:
    load(tampered(exported, tmp_path / "same.pt2", unchanged))


@pytest.mark.usefixtures("no_bomb")
def test_pickled_sample_inputs_are_refused(exported: str, tmp_path: Path) -> None:
    def swap(member: str, content: bytes) -> bytes:
        return pickled() if member.startswith("data/sample_inputs") else content

    with pytest.raises(RequestError, match="sample inputs are more than tensors"):
        load(tampered(exported, tmp_path / "bad.pt2", swap))


@pytest.mark.usefixtures("no_bomb")
@pytest.mark.parametrize(
    "member",
    [
        "data/weights/model.pt",
        "data/constants/opaque_obj_0",
        "data/constants/custom_obj_0",
        "data/aotinductor/model/a.so",
        "models/other.json",
    ],
)
def test_members_that_are_not_tensors_are_refused(
    exported: str, tmp_path: Path, member: str
) -> None:
    path = tampered(exported, tmp_path / "bad.pt2", unchanged, **{member: pickled()})
    with pytest.raises(RequestError, match=f"not safe to load: it holds '{member}'"):
        load(path)


@pytest.mark.usefixtures("no_bomb")
@pytest.mark.parametrize("entry", [{"use_pickle": True}, {"path_name": "opaque_obj_0"}])
def test_pickled_weights_are_refused(
    exported: str, tmp_path: Path, entry: dict[str, object]
) -> None:
    def mark(member: str, content: bytes) -> bytes:
        if member != "data/weights/model_weights_config.json":
            return content
        payload = json.loads(content)
        next(iter(payload["config"].values())).update(entry)
        return json.dumps(payload).encode()

    with pytest.raises(RequestError, match="is a pickled object, not a tensor"):
        load(tampered(exported, tmp_path / "bad.pt2", mark))


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        ("Symbol('s", "__import__('os').getcwd() + Symbol('s"),
        ("torch.ops.aten.conv2d.default", "torch.os.getcwd"),
        ("torch.ops.aten.conv2d.default", "torch.ops.aten.from_file.default"),
        ('"guards_code": []', '"guards_code": ["print(1)"]'),
        ("builtins.tuple", "collections.defaultdict"),
        ('"name": "conv2d"', '"name": "conv2d = print(1)"'),
        ('"name": "conv2d"', '"name": "__class__"'),
        ('"tensor_values": {', '"tensor_values": {"metadata": {"expr_str": "print(1)"}, '),
    ],
)
def test_code_in_the_graph_is_refused(exported: str, tmp_path: Path, good: str, bad: str) -> None:
    def swap(member: str, content: bytes) -> bytes:
        if member != PROGRAM:
            return content
        text = json.dumps(json.loads(content))
        assert good in text
        return text.replace(good, bad).encode()

    with pytest.raises(RequestError, match="not safe to load: its graph holds"):
        load(tampered(exported, tmp_path / "bad.pt2", swap))
