"""Names, wherever people or files give them: one spelling, all of it to be seen, none a formula.

A name goes into tables, terminals, pages, logs, folders and spreadsheets. What passes here does
no harm in any of them, and two names that look the same are the same.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated

from pydantic import AfterValidator

from pudica.models.errors import RequestError
from pudica.models.printable import is_hidden, quote, to_nfc

LONGEST_NAME, LONGEST_CASE, LONGEST_LABEL = 80, 100, 255

SIGNS = "=+-@＝＋－＠﹦﹢﹣﹫⁼₌⁺₊﬩⩵⩶−"
"""With which a formula begins, as wide, small, raised and lowered letters too."""
QUOTES = "'\"＇＂"
"""A spreadsheet leaves the first one out, and looks at what is behind it."""

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
    """Return the name of somebody or something as it may stand.

    Parameters
    ----------
    longest : int
        The most characters.

    Raises
    ------
    RequestError
        It may not; the message says why, and what is allowed.
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
    """Return a node's name, by which files are called too; errors as of :func:`validate_name`."""
    return _validate_with_marks(text, LONGEST_NAME, NODE_MARKS)


def validate_case_name(text: str) -> str:
    """Return a case's name, which is a folder's too; errors as of :func:`validate_name`."""
    return _validate_with_marks(text, LONGEST_CASE, CASE_MARKS)


def validate_label(text: str) -> str:
    """Return what a class, an attribute or a column of a data set is called, as it may stand.

    It may begin with a sign: ``-1`` and ``@home`` are classes as good as others.

    Raises
    ------
    RequestError
        As :func:`validate_name`.
    """
    label = to_nfc(text)
    if problem := _find_readability_problem(label, LONGEST_LABEL):
        raise RequestError(
            f"{quote(text)} {problem}; allowed: 1 to {LONGEST_LABEL} printable characters"
        )
    return label


def validate_labels(texts: Sequence[str]) -> list[str]:
    """Return what the classes 0, 1, 2, … are called, as it may stand; no two are the same.

    Raises
    ------
    RequestError
        As :func:`validate_name`; or two are, and the message says which.
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
    """Return a run's name as it is, if it may stand; errors as of :func:`validate_label`.

    It is that of a folder, which is found under no other spelling.
    """
    validate_label(text)
    return text


def validate_text(text: str) -> str:
    """Return a text of several lines in NFC, if it is printable; errors as of validate_name."""
    found = to_nfc(text)
    hidden = next(
        _select_characters(found, (is_hidden(c) and c not in "\n\t" for c in found)), None
    )
    if hidden is not None:
        raise RequestError(
            f"{quote(text)} has {_describe_character(*hidden)}; allowed: printable characters"
        )
    return found


Name = Annotated[str, AfterValidator(validate_name)]
NodeName = Annotated[str, AfterValidator(validate_node_name)]
CaseName = Annotated[str, AfterValidator(validate_case_name)]
RunName = Annotated[str, AfterValidator(validate_run_name)]
Label = Annotated[str, AfterValidator(validate_label)]


def describe_case_names() -> str:
    """Return in words what a case may be called."""
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
            f"the name {quote(text)} {problem}; allowed: {_describe_allowed(longest, marks)}, the first "
            "of them a letter, a digit or _"
        )
    return name


# Each of these returns what is wrong with a name, as the end of a sentence, or nothing.


def _find_readability_problem(name: str, longest: int) -> str:
    if not name.strip(" "):
        return "has only spaces" if name else "is empty"
    if len(name) > longest:
        return f"has {len(name)} characters"
    hidden = next(_select_characters(name, map(is_hidden, name)), None)
    return f"has {_describe_character(*hidden)}" if hidden else ""


def _describe_character(place: int, character: str) -> str:
    kind = _KINDS.get(unicodedata.category(character), "a character of which nothing is seen")
    return f"{kind}, U+{ord(character):04X}, at place {place}"


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
    # Marks are parts of letters in many scripts.
    others = (unicodedata.category(c)[0] not in "LMN" and c not in marks for c in name)
    other = next(_select_characters(name, others), None)
    return f"has '{other[1]}' at place {other[0]}" if other else ""


def _select_characters(name: str, chosen: Iterable[bool]) -> Iterator[tuple[int, str]]:
    """Return the characters that are chosen, with their places from 1."""
    pairs = zip(enumerate(name, 1), chosen, strict=True)
    return ((place, character) for (place, character), is_chosen in pairs if is_chosen)
