"""Names: what may stand, what may not, and how what may not is shown."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable

import pytest
from hostile_names import EMPTY, FORMULAS, HIDDEN, MARKUP, NFC, NFD, QUOTED, SPACED
from hypothesis import given, settings
from hypothesis import strategies as st

from pudica.models.errors import RequestError
from pudica.models.naming import (
    validate_case_name,
    validate_label,
    validate_labels,
    validate_name,
    validate_node_name,
    validate_run_name,
    validate_text,
)
from pudica.models.printable import escape_hidden, is_hidden

Validate = Callable[[str], str]
NAMES: tuple[Validate, ...] = (validate_name, validate_node_name, validate_case_name)
ALL: tuple[Validate, ...] = (*NAMES, validate_label)


def refusal(validate: Callable[[str], object], text: str) -> str:
    """Return why a name is refused: in a message that can be printed, whatever the name is."""
    with pytest.raises(RequestError) as caught:
        validate(text)
    assert str(caught.value).isprintable()
    assert "allowed: " in str(caught.value)
    return str(caught.value)


def outcome(validate: Validate, text: str) -> tuple[str, str]:
    """Return a name as it may stand, or why it may not."""
    try:
        return validate(text), ""
    except RequestError as error:
        return "", str(error)


@pytest.mark.parametrize("validate", ALL)
@pytest.mark.parametrize("text", HIDDEN.values(), ids=HIDDEN)
def test_what_is_not_seen_is_refused_and_named(validate: Validate, text: str) -> None:
    hidden = next(character for character in text if is_hidden(character))
    assert f"U+{ord(hidden):04X}" in refusal(validate, text)
    assert escape_hidden(text) in refusal(validate, text)


@pytest.mark.parametrize("validate", ALL)
@pytest.mark.parametrize("text", EMPTY.values(), ids=EMPTY)
def test_what_is_empty_is_refused(validate: Validate, text: str) -> None:
    assert "only spaces" in refusal(validate, text) or "is empty" in refusal(validate, text)


@pytest.mark.parametrize("validate", NAMES)
@pytest.mark.parametrize("text", [*FORMULAS.values(), *QUOTED.values(), *SPACED.values()])
def test_a_name_is_no_formula_and_begins_with_no_quotation_mark(
    validate: Validate, text: str
) -> None:
    refusal(validate, text)


@pytest.mark.parametrize("text", [*FORMULAS.values(), "-1", "+1", "@home", "="])
def test_a_class_may_begin_with_a_sign(text: str) -> None:
    assert validate_label(text) == text


@pytest.mark.parametrize(
    "text", [*MARKUP, "Team Blue", "O'Brien", "a=b", "Zürich (2)", "日本", "हिन्दी"]
)
def test_other_names_stay_as_they_are(text: str) -> None:
    assert validate_name(text) == text


@pytest.mark.parametrize("text", ["ResNet-20", "ann", "Müller (2)", "_x", "007", "हिन्दी"])
def test_names_of_nodes_stay_as_they_are(text: str) -> None:
    assert validate_node_name(text) == text


@pytest.mark.parametrize("text", ["../x", "a/b", "a\\b", ".hidden", "-rf", "a;b", "a:b", '"', "$x"])
def test_names_of_files_lead_nowhere_else(text: str) -> None:
    refusal(validate_node_name, text)
    refusal(validate_case_name, text)


@pytest.mark.parametrize("text", ["S_G=8", "noise N(0,4)", "pixels eps=10", "a+b - c"])
def test_names_of_cases_stay_as_they_are(text: str) -> None:
    assert validate_case_name(text) == text


@pytest.mark.parametrize("validate", ALL)
def test_both_spellings_are_one_name(validate: Validate) -> None:
    assert validate(NFD) == validate(NFC) == NFC
    refusal(validate, "x" * 256)


def test_the_length_counts_letters_as_they_are_seen() -> None:
    assert validate_name("e\u0301" * 80) == "é" * 80
    assert "has 81 characters" in refusal(validate_name, "x" * 81)
    assert len(refusal(validate_name, "=" * 10**6)) < 300


def test_a_run_is_found_by_the_name_it_has() -> None:
    assert validate_run_name(NFD) == NFD
    refusal(validate_run_name, "a\x1b[2J")


def test_a_text_may_have_lines() -> None:
    assert validate_text(f"first {NFD}\n\tsecond") == f"first {NFC}\n\tsecond"
    refusal(validate_text, "first\n\x1b[2J")


@pytest.mark.parametrize("pair", [("dog", "dog"), (NFC, NFD)])
def test_no_two_classes_are_called_the_same(pair: tuple[str, str]) -> None:
    with pytest.raises(RequestError, match=r"is there twice, as number 1 and number 3"):
        validate_labels(["cat", pair[0], "ant", pair[1]])
    assert validate_labels(["b", NFD, "a"]) == ["b", NFC, "a"]


@settings(derandomize=True)
@given(st.text(st.characters(), max_size=100))
def test_what_passes_is_printable_nfc_and_passes_again(text: str) -> None:
    for validate in ALL:
        name, refused = outcome(validate, text)
        assert refused.isprintable()
        if refused:
            continue
        assert name.isprintable()
        assert unicodedata.is_normalized("NFC", name)
        assert validate(name) == name
        if validate is not validate_label:
            assert unicodedata.normalize("NFKC", name)[0] not in "=+-@'\""


@settings(derandomize=True)
@given(st.text(st.characters()))
def test_escaped_texts_are_printable_and_other_texts_stay(text: str) -> None:
    assert escape_hidden(text).isprintable()
    assert not any(map(is_hidden, escape_hidden(text)))
    assert escape_hidden(escape_hidden(text)) == escape_hidden(text)
    lines = [escape_hidden(line) for line in text.split("\n")]
    assert escape_hidden(text, keep="\n") == "\n".join(lines)


@pytest.mark.parametrize("text", HIDDEN.values(), ids=HIDDEN)
def test_a_refusal_is_printable_whatever_it_is_of(text: str) -> None:
    assert escape_hidden(str(RequestError(f"there is no {text}"))).isprintable()
    assert "\x1b" not in f"{RequestError(text)}"
    assert str(RequestError("one\ntwo")) == "one\ntwo"
