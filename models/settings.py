"""Keyword arguments, validated by the schema that experiments have."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from pudica.models.errors import RequestError, unknown_name_error
from pudica.models.explain import explain_errors

Settings = TypeVar("Settings", bound=BaseModel)


def validate_settings(
    schema: type[Settings], values: Mapping[str, Any], owner: str, excluded: Collection[str] = ()
) -> Settings:
    """Return keyword arguments as settings.

    Parameters
    ----------
    owner : str
        Whose arguments they are, for messages.
    excluded : collection of str
        Settings of the schema that only an experiment has.

    Raises
    ------
    RequestError
        Names argument, value and what is allowed.
    """
    allowed = [name for name in schema.model_fields if name not in excluded]
    for name in values:
        if name not in allowed:
            raise RequestError(f"{owner}: {unknown_name_error('argument', name, allowed)}")
    for name in allowed:
        if schema.model_fields[name].is_required() and name not in values:
            raise RequestError(f"{owner}: the argument '{name}' is missing")
    try:
        return schema.model_validate(dict(values))
    except ValidationError as error:
        raise RequestError("\n".join(explain_errors(error, schema, owner))) from error
