"""How the rows of known public formats become records: one module a family, one table."""

from trueward.data.formats.base import Format
from trueward.data.formats.table import FORMATS, detect, format_named

__all__ = ["FORMATS", "Format", "detect", "format_named"]
