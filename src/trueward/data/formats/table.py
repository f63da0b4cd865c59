"""The table of formats, most particular first, and detection by columns."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from trueward.core.errors import ConfigError, DataError, nearest
from trueward.data.formats import feedback, hh, judged, llama_factory, trl
from trueward.data.formats.base import Format

__all__ = ["FORMATS", "detect", "format_named"]

_NATIVE_FIRST: Final = (*feedback.FORMATS, *judged.FORMATS, *hh.FORMATS, *llama_factory.FORMATS, *trl.FORMATS)
FORMATS: Final[Mapping[str, Format]] = {item.name: item for item in _NATIVE_FIRST}


def format_named(name: str) -> Format:
    """The format called `name`.

    Raises:
        ConfigError: no such format.
    """
    if name not in FORMATS:
        raise ConfigError(f"unknown data format {name!r}", remedy=nearest(name, [*FORMATS, "auto"]))
    return FORMATS[name]


def detect(rows: Sequence[Mapping[str, Any]]) -> Format:
    """The format that most of `rows` look like; the more particular one if two share the lead.

    Raises:
        DataError: no row looks like any.
    """
    counts = [(sum(item.matches(row) for row in rows), item) for item in FORMATS.values()]
    best = max(count for count, _ in counts)
    if best == 0:
        columns = sorted({str(key) for row in rows for key in row})
        raise DataError(
            "no known format has these columns",
            value=columns,
            expected="for example prompt, chosen, rejected, or messages, or instruction, output",
            remedy=f"rename the columns, or name the format: {', '.join(FORMATS)}",
        )
    return next(item for count, item in counts if count == best)
