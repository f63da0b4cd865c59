"""What the data says is right: the answer of a record, for verifiers to compare with."""

from collections.abc import Mapping

from trueward.data.records import Demonstration, Record

__all__ = ["reference_of_record"]


def reference_of_record(record: Record, column: str | None) -> str:
    """What the data says is right; empty where it says nothing.

    Args:
        column: dotted path into the columns that came with the record, or None for a demonstration's answer.
    """
    if column is None:
        return record.messages[-1].content if isinstance(record, Demonstration) else ""
    value: object = record.meta.extra
    for part in column.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return str(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else ""
