"""Validate names given by people or files: one spelling, no hidden characters, no formulas.

A name ends up in tables, terminals, web pages, logs, folders and spreadsheets. A name that passes
here is harmless in all of them, and two names that look the same are the same.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Annotated

from pydantic import AfterValidator

from pudica.models.errors import RequestError
from pudica.models.printable import is_hidden, quote, to_nfc

LONGEST_NAME, LONGEST_CASE, LONGEST_LABEL = 80, 100, 255

SIGNS = "=+-@＝＋－＠﹦﹢﹣﹫⁼₌⁺₊﬩⩵⩶−"
"""Signs that begin a formula, including full-width, small, superscript and subscript forms."""
QUOTES = "'\"＇＂"
"""A spreadsheet drops a leading quotation mark and looks at what follows it."""

NODE_MARKS = " .()-_"
CASE_MARKS = " .=()+,-_"

_KINDS = {
    "Cc": "a control character",
    "Cf": "an invisible formatting character",
    "Cs": "half a character (the text is not UTF-8)",
    "Co": "a character of private use",
    "Cn": "a character that Unicode does not know",
    "Zl": "a line break",
    "Zp": "a line break",
    "Zs": "a space of another kind",
}


def validate_name(text: str, longest: int = LONGEST_NAME) -> str:
    """Return a valid name of a person or thing, of at most ``longest`` characters, in NFC.

    Raises RequestError if it is not valid; the message says why and what is allowed.
    """
    name = to_nfc(text)
    problem = (
        _find_readability_problem(name, longest)
        or _find_space_problem(name)
        or _find_formula_problem(name)
    )
    if problem:
        raise RequestError(
            f"the name {quote(text)} {problem}; allowed: 1 to {longest} printable characters, no "
            "space at either end, and none of = + - @ ' \" at the beginning"
        )
    return name


def validate_node_name(text: str) -> str:
    """Return a valid node name, which also names files; raises as :func:`validate_name`."""
    return _validate_with_marks(text, LONGEST_NAME, NODE_MARKS)


def validate_case_name(text: str) -> str:
    """Return a valid case name, which also names a folder; raises as :func:`validate_name`."""
    return _validate_with_marks(text, LONGEST_CASE, CASE_MARKS)


def validate_label(text: str) -> str:
    """Return a valid name of a class, an attribute or a column of a data set, in NFC.

    It may begin with a sign: ``-1`` and ``@home`` are valid classes. Raises as
    :func:`validate_name`.
    """
    label = to_nfc(text)
    if problem := _find_readability_problem(label, LONGEST_LABEL):
        raise RequestError(
            f"{quote(text)} {problem}; allowed: 1 to {LONGEST_LABEL} printable characters"
        )
    return label


def validate_labels(texts: Sequence[str]) -> list[str]:
    """Return the valid, distinct names of the classes 0, 1, 2 and so on.

    Raises as :func:`validate_label`, and if two names are equal; the message says which.
    """
    places: dict[str, int] = {}
    for place, text in enumerate(texts):
        first = places.setdefault(validate_label(text), place)
        if first != place:
            spelt = "" if texts[first] == text else ", spelt differently (Unicode's NFC and NFD)"
            raise RequestError(
                f"{quote(text)} is there twice, as number {first} and number {place}{spelt}; "
                "each name stands for one class"
            )
    return list(places)


def validate_run_name(text: str) -> str:
    """Return a run's name unchanged if it is valid; raises as :func:`validate_label`.

    It names an existing folder, so its spelling must not change.
    """
    validate_label(text)
    return text


def validate_text(text: str) -> str:
    """Return a printable multi-line text in NFC; raises as :func:`validate_name`."""
    nfc = to_nfc(text)
    if problem := _find_hidden_character(nfc, allowed="\n\t"):
        raise RequestError(f"{quote(text)} {problem}; allowed: printable characters")
    return nfc


Name = Annotated[str, AfterValidator(validate_name)]
NodeName = Annotated[str, AfterValidator(validate_node_name)]
CaseName = Annotated[str, AfterValidator(validate_case_name)]
RunName = Annotated[str, AfterValidator(validate_run_name)]
Label = Annotated[str, AfterValidator(validate_label)]


def describe_case_names() -> str:
    """Return a description of valid case names."""
    return _describe_allowed(LONGEST_CASE, CASE_MARKS)


def _describe_allowed(longest: int, marks: str) -> str:
    return f"at most {longest} letters, digits, spaces and {' '.join(marks.strip())}"


def _validate_with_marks(text: str, longest: int, marks: str) -> str:
    name = to_nfc(text)
    problem = (
        _find_readability_problem(name, longest)
        or _find_space_problem(name)
        or _find_mark_problem(name, marks)
    )
    if problem:
        raise RequestError(
            f"the name {quote(text)} {problem}; allowed: {_describe_allowed(longest, marks)}, the "
            "first of them a letter, a digit or _"
        )
    return name


# Each of these returns what is wrong with a name, as the end of a sentence, or "".


def _find_readability_problem(name: str, longest: int) -> str:
    if not name.strip(" "):
        return "has only spaces" if name else "is empty"
    if len(name) > longest:
        return f"has {len(name)} characters"
    return _find_hidden_character(name)


def _find_hidden_character(text: str, allowed: str = "") -> str:
    for place, character in enumerate(text, 1):
        if is_hidden(character) and character not in allowed:
            kind = _KINDS.get(unicodedata.category(character), "an invisible character")
            return f"has {kind}, U+{ord(character):04X}, at position {place}"
    return ""


def _find_space_problem(name: str) -> str:
    if name != name.strip(" "):
        return f"{'begins' if name[0] == ' ' else 'ends'} with a space"
    return ""


def _find_formula_problem(name: str) -> str:
    if name[0] in SIGNS:
        return f"begins with '{name[0]}', which spreadsheets take for a formula"
    if name[0] in QUOTES:
        return f"begins with the quotation mark {name[0]}, which spreadsheets leave out"
    if unicodedata.category(name[0])[0] == "M":
        return "begins with an accent that belongs to no letter"
    return ""


def _find_mark_problem(name: str, marks: str) -> str:
    if not (name[0].isalnum() or name[0] == "_"):
        return f"begins with '{name[0]}'"
    for place, character in enumerate(name, 1):
        # Combining marks are parts of letters in many scripts.
        if unicodedata.category(character)[0] not in "LMN" and character not in marks:
            return f"has '{character}' at position {place}"
    return ""
