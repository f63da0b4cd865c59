"""Rows of a Parquet file, a slice of a row group at a time. The one module that imports pyarrow."""

import datetime
import decimal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import pyarrow
import pyarrow.parquet

from trueward.core.errors import DataError

__all__ = ["parquet_values"]

_BATCH_ROWS: Final = 256


def _plain(value: Any) -> Any:
    """JSON values for what Parquet has beyond JSON; bytes stay, and the record refuses them."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, datetime.datetime | datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, decimal.Decimal):
        return str(value)
    return value


def parquet_values(path: Path) -> Iterator[dict[str, Any]]:
    """The rows as dictionaries, in order.

    Raises:
        DataError: the file is gzip (Parquet compresses on its own), damaged, or no Parquet.
    """
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_BATCH_ROWS):
                for row in batch.to_pylist():
                    yield _plain(row)
    except (pyarrow.ArrowException, UnicodeDecodeError, OverflowError, ValueError, OSError) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise DataError(
            f"{path} cannot be read as Parquet: {reason}",
            remedy="unzip it if it is .parquet.gz, otherwise download it again",
        ) from error
