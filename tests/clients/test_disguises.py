"""Disguised images: the papers' equations, the way back, keys, and what is refused."""

from __future__ import annotations

import errno
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from pudica.clients.shields.disguises import (
    STEPS,
    Key,
    KeyedDisguise,
    format_notation,
    parse_notation,
)
from pudica.clients.shields.disguises.baselines import NOISE_KEY
from pudica.clients.shields.disguises.matrix import Addition
from pudica.models.errors import RequestError
from pudica.models.randomness import Randomness, SystemGenerator, numpy_generator

IMAGE = torch.tensor([[[0, 1], [128, 255]]], dtype=torch.uint8)  # (1, 2, 2)
ADDED = torch.tensor([[[1, 256], [7, 100]]])
FACTORS = torch.tensor([[[3, 1], [10, 10]]])

INVERTIBLE = [
    "MAT(256)",
    "MMT(10000)",
    "Rise(400)+MMT(1000)",
    "MAT(256)+MMT(10)",
    "MMT(10)+MAT(2048)",
    "Kiya",
    "Kiya+MAT(5)+MMT(7)+MAT(3)",
    "Sharma(2)",
    "Sharma(4, permute=2)",
    "Kiya+Sharma(8)",
]
LOSSY = ["Noise(25)", "Blur(1.5)", "Sharma(2, noise=50)", "Blur(1)+MAT(256)"]


def images(count: int = 20, shape: tuple[int, ...] = (3, 8, 8), seed: int = 1) -> torch.Tensor:
    return torch.from_numpy(
        np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)
    )


def new_key(notation: str, shape: tuple[int, int, int] = (3, 8, 8), seed: int = 0) -> Key:
    return Key.new(notation, shape, numpy_generator(seed, "key"))


def with_r(notation: str, *matrices: torch.Tensor) -> KeyedDisguise:
    """Return a disguise whose matrices are these, in the order of the steps that have one."""
    key = new_key(notation, (1, 2, 2))
    names = [name for name in key.tensors if name.endswith("/R")]
    return KeyedDisguise(Key(key.notation, key.shape, dict(zip(names, matrices, strict=True))))


# ---------------------------------------------------------------- the papers' equations


@pytest.mark.parametrize(
    ("notation", "matrices", "expected"),
    [
        ("MAT(256)", [ADDED], [[1, 257], [135, 355]]),  # Eq. (1)
        ("MMT(10)", [FACTORS], [[0, 1], [1280, 2550]]),  # Eq. (2)
        ("Rise(100)+MMT(10)", [FACTORS], [[300, 101], [2280, 3550]]),  # Eq. (3)
        ("MAT(256)+MMT(10)", [ADDED, FACTORS], [[3, 257], [1350, 3550]]),  # Eq. (4)
        ("MMT(10)+MAT(256)", [FACTORS, ADDED], [[1, 257], [1287, 2650]]),  # Eq. (5)
    ],
)
def test_equations_of_dlmt(
    notation: str, matrices: list[torch.Tensor], expected: list[list[int]]
) -> None:
    disguise = with_r(notation, *matrices)
    assert disguise.protect(IMAGE[None])[0, 0].tolist() == expected


def test_kiya_flips_pixels_and_shuffles_the_colours_of_each() -> None:
    flip = torch.tensor([[[255, 0]], [[0, 0]], [[255, 255]]], dtype=torch.uint8)
    colours = torch.tensor([[[2, 0]], [[0, 1]], [[1, 2]]])
    disguise = KeyedDisguise(Key("Kiya", (3, 1, 2), {"0/flip": flip, "0/colours": colours}))
    image = torch.tensor([[[10, 1]], [[20, 2]], [[30, 3]]], dtype=torch.uint8)
    # Flipped: red 245, 1; green 20, 2; blue 225, 252. Red then comes from blue, and so on.
    assert disguise.protect(image[None])[0].tolist() == [[[225, 1]], [[245, 2]], [[20, 252]]]


def test_sharma_multiplies_each_block_with_its_own_matrix() -> None:
    turn, mirror = torch.tensor([[0.0, -1.0], [1.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, -1.0]])
    rotations = torch.stack([turn, mirror])[None]
    disguise = KeyedDisguise(Key("Sharma(2)", (1, 2, 4), {"0/rotations": rotations}))
    image = torch.tensor([[[1, 2, 5, 6], [3, 4, 7, 8]]], dtype=torch.uint8)
    expected = [[-3.0, -4.0, 5.0, 6.0], [1.0, 2.0, -7.0, -8.0]]
    assert disguise.protect(image[None])[0, 0].tolist() == expected


def test_sharma_shuffles_blocks_first() -> None:
    rotations = torch.eye(2).expand(1, 2, 2, 2)
    key = Key(
        "Sharma(2, permute=2)",
        (1, 2, 4),
        {"0/rotations": rotations, "0/order": torch.tensor([1, 0])},
    )
    image = torch.tensor([[[1, 2, 5, 6], [3, 4, 7, 8]]], dtype=torch.uint8)
    assert KeyedDisguise(key).protect(image[None])[0, 0].tolist() == [[5, 6, 1, 2], [7, 8, 3, 4]]


def test_sharmas_matrices_are_orthogonal_and_differ() -> None:
    rotations = new_key("Sharma(4)").tensors["0/rotations"].double()
    assert rotations.shape == (3, 4, 4, 4)
    torch.testing.assert_close(
        rotations @ rotations.mT, torch.eye(4).double().expand_as(rotations), atol=1e-6, rtol=0
    )
    flat = rotations.reshape(12, 16)
    assert torch.cdist(flat, flat).fill_diagonal_(1).min() > 0.1


# ------------------------------------------------------------------------- extremes


@pytest.mark.parametrize(
    ("notation", "dtype", "largest"),
    [
        ("MAT(2048)", torch.int32, 255 + 2048),
        ("Rise(400)+MMT(10000)", torch.int32, 6_550_000),
        ("MMT(10000)+MAT(2048)", torch.int32, 2_552_048),
        ("Rise(400)+MMT(10000)+MMT(10000)+MAT(2048)", torch.int64, 65_500_002_048),
    ],
)
def test_the_largest_numbers_are_exact(notation: str, dtype: torch.dtype, largest: int) -> None:
    key = new_key(notation, (1, 2, 2))
    most = {"MAT(2048)": 2048, "MMT(10000)": 10_000}
    steps = {str(place): most.get(str(step)) for place, step in enumerate(key.steps)}
    top = {n: torch.full_like(t, steps[n.split("/")[0]]) for n, t in key.tensors.items()}
    disguise = KeyedDisguise(Key(key.notation, key.shape, top))
    out = disguise.protect(torch.full((1, 1, 2, 2), 255, dtype=torch.uint8))
    assert out.dtype == dtype
    assert out.flatten().tolist() == [largest] * 4
    assert disguise.span.high == largest


@pytest.mark.parametrize("notation", [*INVERTIBLE, *LOSSY])
def test_values_lie_where_the_disguise_says(notation: str) -> None:
    disguise = KeyedDisguise(new_key(notation))
    out = disguise.protect(images(200))
    assert out.dtype == disguise.span.dtype
    assert disguise.span.low <= out.min() <= out.max() <= disguise.span.high


def test_numbers_that_no_float_holds_are_refused() -> None:
    with pytest.raises(RequestError, match=r"allowed: below 2\^53"):
        parse_notation("MMT(1000000)+MMT(1000000)+MMT(1000)")


@pytest.mark.parametrize("step", ["MAT", "MMT"])
def test_r_is_uniform_from_1_to_its_maximum(step: str) -> None:
    drawn = new_key(f"{step}(10)", (1, 100, 100)).tensors["0/R"].flatten().numpy()
    counts = np.bincount(drawn, minlength=12)
    assert counts[0] == counts[11] == 0
    # Of fair draws one seed in 1000 fails; this one is fixed.
    assert stats.chisquare(counts[1:11]).pvalue > 1e-3


# ------------------------------------------------------------------------ and back


@pytest.mark.parametrize("notation", INVERTIBLE)
@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 8, 16)])
def test_what_is_disguised_comes_back(notation: str, shape: tuple[int, int, int]) -> None:
    originals = images(50, shape)
    before = originals.clone()
    disguise = KeyedDisguise(new_key(notation, shape))
    disguised = disguise.protect(originals)
    assert torch.equal(disguise.restore(disguised), before)
    assert torch.equal(originals, before)
    assert torch.equal(disguise.protect(originals), disguised)


def test_settings_are_whole_numbers_of_any_kind() -> None:
    assert [str(Addition(value)) for value in (256, 256.0, np.int64(256))] == ["MAT(256)"] * 3
    with pytest.raises(RequestError, match=r"MAX_V must be a whole number .*, is 2\.5"):
        Addition(2.5)


@pytest.mark.parametrize("notation", LOSSY)
def test_what_loses_something_says_so_when_it_is_to_be_undone(notation: str) -> None:
    disguise = KeyedDisguise(new_key(notation))
    with pytest.raises(RequestError, match="can't be undone"):
        disguise.restore(disguise.protect(images()))


@pytest.mark.parametrize("notation", [*INVERTIBLE, *LOSSY])
def test_a_disguise_is_of_each_image_alone(notation: str) -> None:
    """Neither order nor size of batches matters, so a data set can be streamed."""
    disguise, originals = KeyedDisguise(new_key(notation)), images(7)
    together = disguise.protect(originals)
    for place in (6, 0, 3):
        assert torch.equal(disguise.protect(originals[place : place + 1])[0], together[place])
    assert disguise.protect(originals[:0]).shape == (0, 3, 8, 8)


def test_more_images_than_are_worked_on_together(monkeypatch: pytest.MonkeyPatch) -> None:
    disguise, originals = KeyedDisguise(new_key("MAT(256)+MMT(10)")), images(101)
    whole = disguise.protect(originals)
    monkeypatch.setattr("pudica.clients.shields.disguises.disguise.CHUNK_VALUES", 3 * 8 * 8 * 10)
    assert torch.equal(disguise.protect(originals), whole)


def test_undoing_with_another_key_says_so() -> None:
    disguised = KeyedDisguise(new_key("MAT(256)+MMT(10)")).protect(images())
    other = KeyedDisguise(new_key("MAT(256)+MMT(10)", seed=1))
    with pytest.raises(RequestError, match=f"not disguised with the key {other.key.fingerprint}"):
        other.restore(disguised)


@pytest.mark.parametrize("notation", ["MMT(4)", "MAT(3)+MMT(50)", "Sharma(2)", "Sharma(8)"])
def test_another_key_is_noticed_on_dark_images(notation: str) -> None:
    dark = images() % 64
    disguised = KeyedDisguise(new_key(notation)).protect(dark)
    for seed in range(1, 6):
        with pytest.raises(RequestError, match="not disguised with the key"):
            KeyedDisguise(new_key(notation, seed=seed)).restore(disguised)


def test_no_images_are_no_trouble() -> None:
    disguise = KeyedDisguise(new_key("MAT(256)"))
    assert disguise.restore(disguise.protect(images(0))).shape == (0, 3, 8, 8)


# ---------------------------------------------------------------------------- noise


@pytest.mark.parametrize(
    ("notation", "distribution"),
    [("Noise(5)", stats.norm(0, 5)), ("Sharma(1, noise=50)", stats.uniform(0, 50))],
)
def test_noise_has_the_distribution_it_should(notation: str, distribution: stats.norm) -> None:
    plain = images(100, (1, 16, 16))
    plain = plain // 2 + 64  # away from what is cut off
    disguise = KeyedDisguise(new_key(notation, (1, 16, 16)))
    noisy = disguise.protect(plain)
    signs = disguise.key.tensors.get("0/rotations", torch.ones(1)).sign().reshape(-1)
    noise = noisy.flatten(1) * signs - plain.flatten(1)
    # Rounding to whole numbers is undone by drawing where it was rounded from.
    if disguise.span.kind == "pixels":
        noise = noise + torch.rand(noise.shape, generator=torch.Generator().manual_seed(0)) - 0.5
    # Of right noise one seed in 1000 fails; this one is fixed.
    assert stats.kstest(noise.flatten().numpy(), distribution.cdf).pvalue > 1e-3


def test_noise_differs_between_images_and_keys() -> None:
    plain = images(2, (1, 16, 16))
    one = KeyedDisguise(new_key("Noise(25)", (1, 16, 16))).protect(plain)
    other = KeyedDisguise(new_key("Noise(25)", (1, 16, 16), seed=1)).protect(plain)
    assert (one != other).float().mean() > 0.8
    first, second = (one.int() - plain.int()).flatten(1)
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.25  # 256 pixels; 4 standard errors


# ----------------------------------------------------------------------------- keys


@pytest.mark.parametrize("notation", [*INVERTIBLE, *LOSSY])
def test_a_key_comes_back_from_its_file(notation: str, tmp_path: Path) -> None:
    key = new_key(notation)
    key.save(tmp_path / "key.safetensors")
    again = Key.load(tmp_path / "key.safetensors")
    assert (again.notation, again.shape) == (key.notation, key.shape)
    assert again.fingerprint == key.fingerprint
    assert torch.equal(KeyedDisguise(again).protect(images()), KeyedDisguise(key).protect(images()))


def test_a_seed_gives_the_same_key_in_every_process() -> None:
    code = (
        "from pudica.clients.shields.disguises import Key\n"
        "from pudica.models.randomness import numpy_generator\n"
        "print(Key.new('MAT(256)+MMT(10)', (3, 8, 8), numpy_generator(0, 'key')).fingerprint)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == new_key("MAT(256)+MMT(10)").fingerprint


@pytest.mark.parametrize("notation", ["MAT(256)", "MMT(10)", "Kiya", "Sharma(2)", "Noise(3)"])
def test_keys_of_the_systems_randomness_differ(notation: str) -> None:
    drawn: list[Randomness] = [SystemGenerator(), SystemGenerator()]
    one, other = (Key.new(notation, (3, 8, 8), each) for each in drawn)
    assert one.fingerprint != other.fingerprint


def test_a_fingerprint_is_of_notation_shape_and_every_tensor() -> None:
    key = new_key("MAT(256)+MMT(10)")
    changed = {**key.tensors, "1/R": key.tensors["1/R"].clone()}
    changed["1/R"][0, 0, 0] += 1
    fingerprints = {
        key.fingerprint,
        Key(key.notation, key.shape, changed).fingerprint,
        Key("MAT(256)+MMT(11)", key.shape, key.tensors).fingerprint,
        Key(key.notation, (3, 4, 16), key.tensors).fingerprint,
    }
    assert len(fingerprints) == 4


def test_the_secret_is_not_in_what_a_key_prints() -> None:
    key = new_key("Noise(3)")
    secret = key.tensors[f"0/{NOISE_KEY}"]
    assert str(secret.tolist()[:4])[1:-1] not in repr(key)
    assert "tensor" not in repr(key)


def test_only_the_owner_reads_a_key_file(tmp_path: Path) -> None:
    path = tmp_path / "key.safetensors"
    new_key("MAT(256)").save(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o644)
    with pytest.raises(RequestError, match=f"chmod 600 {path}"):
        Key.load(path)


def test_a_key_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "key.safetensors"
    new_key("MAT(256)").save(path)
    before = path.read_bytes()
    with pytest.raises(RequestError, match="choose another name"):
        new_key("MAT(256)", seed=1).save(path)
    assert path.read_bytes() == before


def test_a_key_that_cannot_be_written_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("pudica.clients.shields.disguises.key.save_tensors", full)
        with pytest.raises(RequestError, match=r"can't write the key .*: No space left"):
            new_key("MAT(256)").save(tmp_path / "key")
    assert not list(tmp_path.iterdir())
    new_key("MAT(256)").save(tmp_path / "key")
    assert Key.load(tmp_path / "key").fingerprint == new_key("MAT(256)").fingerprint


@pytest.mark.parametrize(
    ("notation", "name", "value"),
    [
        ("MAT(256)", "0/R", 2**40),
        ("MAT(256)", "0/R", -300),
        ("MMT(10)", "0/R", 0),
        ("Kiya", "0/colours", 3),
        ("Kiya", "0/flip", 7),
        ("Sharma(2)", "0/rotations", 2.0),
        ("Sharma(2, permute=2)", "0/order", 0),
    ],
)
def test_a_key_with_values_that_are_never_drawn_is_refused(
    notation: str, name: str, value: float, tmp_path: Path
) -> None:
    key = new_key(notation)
    key.tensors[name].fill_(value)
    key.save(tmp_path / "key")
    with pytest.raises(RequestError, match="not a key of a disguise, or is damaged"):
        Key.load(tmp_path / "key")


def test_a_key_with_one_changed_value_is_damaged(tmp_path: Path) -> None:
    key = new_key("MAT(256)")
    key.save(tmp_path / "key")
    content = bytearray((tmp_path / "key").read_bytes())
    content[-8] ^= 1
    (tmp_path / "key").write_bytes(content)
    with pytest.raises(RequestError, match="damaged"):
        Key.load(tmp_path / "key")


@pytest.mark.parametrize("damage", ["text", "weights", "shape", "empty"])
def test_what_is_no_key_is_refused(damage: str, tmp_path: Path) -> None:
    from pudica.models.files import save_tensors

    path, key = tmp_path / "key.safetensors", new_key("MAT(256)")
    note = {"format": "pudica-key-1", "notation": key.notation, "shape": [3, 8, 8]}
    if damage == "text":
        path.write_text("MAT(256)")
    elif damage == "weights":
        save_tensors(path, {"fc.weight": torch.ones(3)}, {"epoch": 3})
    elif damage == "shape":
        save_tensors(path, {"0/R": key.tensors["0/R"][:, :4]}, note)
    else:
        path.touch()
    path.chmod(0o600)
    with pytest.raises(RequestError, match="not a key"):
        Key.load(path)


def test_a_key_that_is_not_there_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="pudica key new"):
        Key.load(tmp_path / "key.safetensors")


# ------------------------------------------------------------------------- notation


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("MAT(256)", "MAT(256)"),
        (" mat( 256 ) + mmt(max_v=10)", "MAT(256)+MMT(10)"),
        ("Rise(100)+MMT(1000)", "Rise(100)+MMT(1000)"),
        ("sharma(2,noise=50, permute=4)", "Sharma(2, noise=50, permute=4)"),
        ("Sharma(2, noise=0)", "Sharma(2)"),
        ("KIYA", "Kiya"),
        ("Kiya()+MAT(5)", "Kiya+MAT(5)"),
        ("Noise(2.5)", "Noise(2.5)"),
        ("MAT(1000000)", "MAT(1000000)"),
        ("MAT(1e+3)+MMT(2)", "MAT(1000)+MMT(2)"),
    ],
)
def test_notation_is_read_and_written(text: str, expected: str) -> None:
    assert format_notation(parse_notation(text)) == expected
    assert parse_notation(expected) == parse_notation(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("MAT(0)", "MAX_V must be a whole number of at least 1 and below 2\\^53, is 0"),
        ("MMT(0.5)", "MAX_V must be a whole number of at least 1 and below 2\\^53, is 0.5"),
        ("Rise(-1)+MMT(5)", "RISE_V must be a whole number of at least 0"),
        ("MTA(256)", "unknown transformation 'MTA'. Did you mean 'MMT'.*Allowed: Blur, Kiya, MAT"),
        ("MAT(1e300)", "whole number"),
        ("MAT", "max_v is missing; write MAT"),
        ("MAT(x)", "max_v must be a number, is 'x'"),
        ("MAT(nan)", "whole number"),
        ("MAT(inf)", "whole number"),
        ("MAT(1, 2)", "'2' is not understood"),
        ("Sharma(2, blocks=3)", "'blocks=3' is not understood"),
        ("MAT(2)++MMT(3)", "is not a step of a disguise"),
        ("", "is not a step of a disguise"),
        ("MAT(256)+Kiya", r"Kiya can't come after MAT\(256\): it takes pixels"),
        ("Sharma(2)+MAT(3)", r"MAT\(3\) can't come after Sharma\(2\): it takes whole numbers"),
        ("MMT(2)+Sharma(2)", "it takes pixels"),
        ("Noise(0)", "sigma must be 0.1 to"),
        ("Blur(0)", "sigma must be 0.1 to"),
        ("Sharma(0)", "block must be a whole number of at least 1"),
        ("Sharma(2, noise=-1)", "noise must be 0 to 10000"),
    ],
)
def test_wrong_notation_says_what_is_allowed(text: str, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        parse_notation(text)


@pytest.mark.parametrize(
    ("notation", "message"),
    [
        ("Sharma(3)", "block = 3 does not divide images of 8x8; allowed: 1, 2, 4, 8"),
        ("Sharma(4, permute=5)", "permute = 5 does not divide"),
        ("Blur(3)", "reaches 9 pixels, and images are 8x8; allowed: up to 2.33"),
    ],
)
def test_what_does_not_fit_the_images_says_so(notation: str, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        new_key(notation)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (images().float() / 255, "must be torch.uint8, are torch.float32; scale floats"),
        (images(shape=(1, 8, 8)), "images are 1x8x8, the key [0-9a-f]{16} is for 3x8x8"),
        (images()[0], "the key"),
    ],
)
def test_wrong_images_are_refused(wrong: torch.Tensor, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        KeyedDisguise(new_key("MAT(256)")).protect(wrong)


def test_every_step_is_in_these_tests() -> None:
    used = {type(step) for notation in (*INVERTIBLE, *LOSSY) for step in parse_notation(notation)}
    assert used == set(STEPS.values())


@pytest.mark.parametrize(("notation", "why"), [("MAT(256)", "can undo it"), ("Blur(1)", "removes")])
def test_a_disguise_guarantees_nothing_for_a_record(notation: str, why: str) -> None:
    guarantee = KeyedDisguise(new_key(notation)).guarantee()
    assert guarantee.epsilon is None
    assert why in guarantee.reasons[0]


@pytest.mark.parametrize("shape", [(3, 2**40, 2**40), (3, 8), (0, 8, 8), (3, 4096, 4096)])
def test_images_that_are_none_are_refused(shape: tuple[int, int, int]) -> None:
    with pytest.raises(RequestError, match="at most 16,777,216 values, not"):
        new_key("MAT(256)", shape)
