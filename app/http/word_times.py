"""The option ``word_timestamps``: yes, no, or which kind."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, TypeAdapter, ValidationError, WithJsonSchema

_YES_OR_NO = TypeAdapter(bool)


def _kind(value: Any) -> Any:
    """The kind of word times that ``value`` means; one of the two names, or whatever says yes or no."""
    if value in ("fast", "aligned"):
        return value
    try:
        return "aligned" if _YES_OR_NO.validate_python(value) else ""
    except ValidationError:
        raise ValueError("must be false, true, fast or aligned") from None


WordTimes = Annotated[
    Literal["", "fast", "aligned"],
    BeforeValidator(_kind),
    WithJsonSchema({"anyOf": [{"type": "boolean"}, {"type": "string", "enum": ["fast", "aligned"]}]}),
]
"""``""`` for none, else the kind. Everything that pydantic takes for true means ``aligned``."""
