from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.image import imread
from written_runs import accuracy_rows, competition_rows, generator_rows, write_artefacts, write_run

from pudica import analysis
from pudica.analysis.drawing import spread_out

Write = Callable[..., Path]


def names(paths: list[Path]) -> list[str]:
    return [path.name for path in paths]


def assert_drawn(paths: list[Path]) -> None:
    for path in paths:
        image = imread(path)
        assert 200 < image.shape[0] < 2500
        assert 300 < image.shape[1] < 2500
        assert image.std() > 0.01


def test_a_run_gets_the_figures_of_the_paper(small_run: Write) -> None:
    path = small_run()
    write_artefacts(path, ["main"])
    drawn = analysis.plot(path)
    assert names(drawn) == [
        "main-images.png",
        "main-accuracy.png",
        "main-plain-against-noisy.png",
        "main-sigma-mu.png",
    ]
    assert {file.parent for file in drawn} == {path / "plots"}
    assert_drawn(drawn)


def test_many_participants_in_colour_and_several_cases(tmp_path: Path) -> None:
    people = [f"Model-{i}" for i in range(20)] + ["_a$b$c_"]
    plain = {name: 0.9 - 0.02 * i for i, name in enumerate(people)}
    noisy = {name: value / 2 for name, value in plain.items()}
    rows = competition_rows(plain, noisy, {"one": noisy, "two": plain}, epochs=1)
    path = write_run(tmp_path / "run", rows, people, cases={"one": {}, "two": {}})
    write_artefacts(path, ["one"], channels=3, side=16)
    drawn = analysis.plot(path)
    assert names(drawn)[-1] == "ranks.png"
    assert len(drawn) == 4 + 2 + 1
    assert_drawn(drawn)


def test_one_participant_and_one_image(tmp_path: Path) -> None:
    one = {"LeNet": 0.5}
    rows = competition_rows(one, one, {"main": one}, epochs=1, draws=1)
    path = write_run(tmp_path / "run", rows, list(one))
    write_artefacts(path, ["main"], channels=3, images=1)
    drawn = analysis.plot(path)
    assert len(drawn) == 4
    assert_drawn(drawn)


def test_without_comparison_or_epochs_the_rest_is_drawn(tmp_path: Path) -> None:
    rows = accuracy_rows("trained", {"LeNet": 0.5}, 1.0, "main", 2)
    path = write_run(tmp_path / "run", rows, ["LeNet"], epochs=0, release={"compare": False})
    write_artefacts(path, ["main"])
    assert names(analysis.plot(path)) == ["main-images.png", "main-sigma-mu.png"]


def test_a_run_that_is_still_running_shows_what_there_is(tmp_path: Path) -> None:
    rows = generator_rows({"A": 0.1, "B": 0.2}, {"A": 0.8, "B": 0.7}, "main", 4)
    path = write_run(tmp_path / "run", rows[:5], ["A", "B"], status="running")
    assert names(analysis.plot(path)) == ["main-accuracy.png"]
    assert analysis.plot(write_run(tmp_path / "empty", [], ["A"], status="running")) == []


def test_the_callers_matplotlib_settings_do_not_matter(small_run: Write) -> None:
    path = small_run()
    before = [file.read_bytes() for file in analysis.plot(path)]
    with mpl.rc_context({"font.size": 30, "figure.facecolor": "red", "image.cmap": "jet"}):
        after = [file.read_bytes() for file in analysis.plot(path)]
        assert mpl.rcParams["font.size"] == 30
    assert after == before


@pytest.mark.parametrize("seed", range(5))
def test_labels_keep_their_gap_and_bounds(seed: int) -> None:
    values = np.sort(np.random.default_rng(seed).uniform(0, 100, 9))
    placed = spread_out(values, 10.0, 0.0, 100.0)
    assert (np.diff(placed) >= 10 - 1e-9).all()
    assert placed[0] >= -1e-9
    assert placed[-1] <= 100 + 1e-9
    far = np.array([0.0, 50.0, 100.0])
    np.testing.assert_allclose(spread_out(far, 10.0, 0.0, 100.0), far)
