"""Keyword arguments of a strategy, validated by the schema that experiments have."""

from pudica.models.settings import validate_settings

__all__ = ["validate_settings"]
