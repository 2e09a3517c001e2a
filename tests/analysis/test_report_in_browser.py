"""A report as Chromium shows it; skipped where there is none."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from written_runs import competition_rows, write_artefacts, write_run

from pudica import analysis

pytestmark = pytest.mark.slow
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
LONG = "a-participant-with-a-name-that-is-longer-than-a-phone-is-wide-" * 2


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip(f"no browser is installed: none of {', '.join(BROWSERS)}")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=program)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    for seed in range(2):
        values = {"LeNet": 0.7, "ResNet-56": 0.8 + 0.01 * seed, LONG: 0.1, "MLP-10": 0.09}
        path = folder / f"seed{seed}"
        rows = competition_rows(values, values, {"main": values})
        write_run(path, rows, list(values), seed=seed)
        write_artefacts(path, ["main"])
    return analysis.report(folder, folder / "report.html")


@pytest.fixture
def page(browser: Any, report: Path) -> Iterator[Any]:
    """The report on a desktop's screen; nothing may be loaded, and nothing go wrong."""
    problems: list[str] = []
    opened = browser.new_page()
    opened.on("console", lambda message: problems.append(message.text))
    opened.on("pageerror", lambda error: problems.append(str(error)))
    opened.on("request", lambda request: problems.append(request.url[:80]))
    opened.goto(report.as_uri())
    yield opened
    opened.close()
    loaded = [problem for problem in problems if not problem.startswith("data:image/png")]
    assert loaded == [report.as_uri()]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 360])
def test_nothing_is_wider_than_the_screen(page: Any, width: int, scheme: str) -> None:
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 800})
    for details in page.locator("details").all():
        details.evaluate("element => element.open = true")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("document.body.scrollWidth") <= width
    # Wide tables and figures scroll by themselves.
    for box in page.locator(".table, .drawing, pre").all():
        bounds = box.bounding_box()
        assert bounds["x"] >= 0
        assert bounds["x"] + bounds["width"] <= width


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_stand_out_from_the_page(page: Any, scheme: str) -> None:
    page.emulate_media(color_scheme=scheme)
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (luminance(paper) > 0.5) == (scheme == "light")
    texts = page.locator("h1, p, td, th button, figcaption, dt, dd, .drawing text")
    colours = texts.evaluate_all("""elements => elements.map((element) => {
      const style = getComputedStyle(element);
      return element.tagName === "text" ? style.fill : style.color;
    })""")
    assert len(colours) > 100
    assert min(contrast(colour, paper) for colour in colours) >= 4.5


def luminance(colour: str) -> float:
    """Return the relative luminance of WCAG 2 of ``rgb(…)``."""
    shares = [int(part) / 255 for part in colour.partition("(")[2].rstrip(")").split(",")[:3]]
    linear = [s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares]
    return sum(w * s for w, s in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(colour: str, other: str) -> float:
    dark, light = sorted((luminance(colour), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def read_board(page: Any) -> list[list[str]]:
    rows = page.locator("table").first.locator("tbody tr").all()
    return [row.locator("td").all_inner_texts() for row in rows]


@pytest.mark.parametrize("by", ["click", "keyboard"])
def test_tables_sort(page: Any, by: str) -> None:
    table = page.locator("table").first
    original = read_board(page)
    names = [row[1] for row in original]
    accuracy = table.get_by_role("button", name="plain accuracy", exact=True)
    head = table.get_by_role("columnheader", name="plain accuracy")

    def press() -> None:
        accuracy.press("Enter") if by == "keyboard" else accuracy.click()

    assert head.get_attribute("aria-sort") == "none"
    press()
    assert head.get_attribute("aria-sort") == "ascending"
    # By value: 9 before 10, though it comes after it as text.
    assert [row[1] for row in read_board(page)] == ["MLP-10", LONG, "LeNet", "ResNet-56"]
    press()
    assert head.get_attribute("aria-sort") == "descending"
    assert [row[1] for row in read_board(page)] == ["ResNet-56", "LeNet", LONG, "MLP-10"]
    table.get_by_role("button", name="model").click()
    assert head.get_attribute("aria-sort") == "none"
    assert [row[1] for row in read_board(page)] == sorted(names, key=str.lower)
    press(), press(), press()
    assert read_board(page) == original


def test_missing_values_come_last(page: Any) -> None:
    table = page.locator("table", has_text="Beside the paper")
    button = table.get_by_role("button", name="plain accuracy published")
    place = table.locator("th").all_inner_texts().index(button.inner_text())
    for _ in range(2):
        button.click()
        cells = [
            row.locator("td").nth(place).inner_text() for row in table.locator("tbody tr").all()
        ]
        there = [bool(cell) for cell in cells]
        assert sorted(there, reverse=True) == there
        assert {*there} == {True, False}


def test_without_scripts_it_is_all_there(browser: Any, report: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(report.as_uri())
    assert page.locator("table").count() > 3
    assert page.locator("svg").first.is_visible()
    assert page.locator("button").count() == 0
    context.close()
