"""Several settings in one experiment: each case says what differs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo

from pudica.models.naming import describe_case_names, validate_case_name
from pudica.models.printable import quote
from pudica.models.settings import explain_errors

# Of a run's directory, where each case has a folder of its own.
OWN_NAMES = (
    *("plots", "vault", "experiment.yaml", "run.json", "metrics.jsonl", "events.log"),
    *("progress.json", "checkpoint.safetensors", "examiner.safetensors", "releases.json"),
    *("nodes.json", "stages.json", "orders.json", "manifest.json", "submissions.safetensors"),
    *("flower.log", "page", "loggers.json", "tensorboard", "wandb"),
)
MAIN = "main"


class CasesConfig(BaseModel):
    """A section of settings that an experiment may run in several variants.

    Attributes
    ----------
    cases : dict of str to dict
        By name, what differs from the section itself; keys may have dots, as with ``--set``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    shared_by_cases: ClassVar[frozenset[str]] = frozenset()
    """Keys that no case may change."""

    cases: dict[str, dict[str, Any]] = {}

    def each_case(self) -> dict[str, Self]:
        """Return the full settings of each case by name; without ``cases``, of ``main``.

        Raises
        ------
        ValueError
            If a case's name is no folder's, or that of another too, it changes what is shared, or a
            value is wrong.
        """
        return self._validate_cases({}) or {MAIN: self}

    def resolve_cases(self, info: ValidationInfo) -> None:
        """Check every case, and make file names in it mean the same in any directory.

        To be called once the rest is validated. Errors are as of :meth:`each_case`.
        """
        for text, case in zip(self.cases, self._validate_cases(info.context).values(), strict=True):
            values = case.model_dump(mode="json", by_alias=True)
            for key, given in self.cases[text].items():
                read = _value_at(values, key.split("."))
                if isinstance(given, str) and isinstance(read, str):
                    self.cases[text][key] = read

    def _validate_cases(self, context: Any) -> dict[str, Self]:
        own = self.model_dump(by_alias=True, exclude={"cases"})
        found: dict[str, Self] = {}
        for text, changes in self.cases.items():
            name = _name(text)
            if name in found:
                raise ValueError(
                    f"case {quote(text)} is there twice, in two spellings (NFC and NFD)"
                )
            found[name] = self._validate_case(name, own, changes, context)
        return found

    def _validate_case(
        self, name: str, own: Mapping[str, Any], changes: Mapping[str, Any], context: Any
    ) -> Self:
        if fixed := {"cases", *self.shared_by_cases} & {key.partition(".")[0] for key in changes}:
            raise ValueError(f"case '{name}': {', '.join(sorted(fixed))} is shared by all cases")
        values: Any = own
        for key, value in changes.items():
            values = _changed(values, key.split("."), value)
        try:
            return type(self).model_validate(values, context=context)
        except ValidationError as error:
            problems = "; ".join(explain_errors(error, type(self)))
            raise ValueError(f"case '{name}': {problems}") from error


def _name(text: str) -> str:
    try:
        name = validate_case_name(text)
    except ValueError:
        name = ""
    if not name or name in OWN_NAMES:
        raise ValueError(
            f"case {quote(text)}: a case's name is that of a folder: {describe_case_names()}, "
            f"the first a letter, a digit or _, and none of {', '.join(OWN_NAMES)}"
        )
    return name


def _changed(values: Any, path: list[str], value: Any) -> dict[str, Any]:
    """Return a mapping with the value at a path, the rest as it was."""
    section = values if isinstance(values, Mapping) else {}
    first, *rest = path
    return {**section, first: _changed(section.get(first), rest, value) if rest else value}


def _value_at(values: Any, path: list[str]) -> Any:
    """Return what a mapping holds at a path; None if there is nothing."""
    for key in path:
        values = values.get(key) if isinstance(values, Mapping) else None
    return values
