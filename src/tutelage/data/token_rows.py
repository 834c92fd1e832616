"""Tokenised rows on disk: a sequence of `TokenRow`s whose memory does not grow with their number.

The rows go to files without a name in the folder for temporary files (TMPDIR), which end with the process, however it
ends. 1,000,000 rows of 200 tokens take 850 MB there.
"""

import os
import tempfile
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import accumulate, chain
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from tutelage.data.rows import IGNORE_INDEX, EncodedRow, TokenRow
from tutelage.errors import OutputError

_ROW = np.dtype([("end", "i8"), ("row", "i8"), ("line", "i8"), ("weight", "f8"), ("weights_end", "i8")])
"""Of a row: where its tokens end, its number, the line of its file, its weight, where the weights of its tokens end,
which are those before it if it has none."""
_ROWS_PER_WRITE = 1024


@dataclass(frozen=True)
class Extent:
    """Rows written one after another, whose ends are counted from the first of them. file: of their places, which are
    `file:line` but for those in `places`, by index."""

    num_rows: int
    num_tokens: int
    num_weights: int
    file: str
    places: dict[int, str]


@dataclass(frozen=True)
class RowSegment:
    """An extent, read. tokens: ids of all rows, -1 - id for those that are not trained. first_row: added to the numbers
    of the rows."""

    rows: NDArray[Any]
    tokens: NDArray[np.int32]
    weights: NDArray[np.float64]
    file: str
    places: dict[int, str]
    first_row: int = 0

    def row(self, index: int) -> TokenRow:
        end, row, line, weight, weights_end = self.rows[index].item()
        start, _, _, _, weights_start = self.rows[index - 1].item() if index else (0, 0, 0, 0.0, 0)
        signed = self.tokens[start:end]
        trained = signed >= 0
        ids = np.where(trained, signed, -1 - signed).tolist()
        labels = np.where(trained, signed, IGNORE_INDEX).tolist()
        weights = self.weights[weights_start:weights_end].tolist() if weights_end > weights_start else None
        place = self.places.get(index, f"{self.file}:{line}")
        return TokenRow(ids, labels, weight, self.first_row + row, place, weights)


class TokenRows(Sequence[TokenRow]):
    """Rows in order, made anew each time they are asked for. `lengths`: their numbers of tokens."""

    def __init__(self, segments: Sequence[RowSegment]) -> None:
        self._segments = segments
        self._ends = list(accumulate(len(segment.rows) for segment in segments))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @property
    def num_tokens(self) -> int:
        return sum(len(segment.tokens) for segment in self._segments)

    @property
    def lengths(self) -> NDArray[np.int64]:
        lengths = [np.diff(segment.rows["end"], prepend=0) for segment in self._segments]
        return np.concatenate(lengths) if lengths else np.empty(0, np.int64)

    @overload
    def __getitem__(self, index: int) -> TokenRow: ...
    @overload
    def __getitem__(self, index: slice) -> list[TokenRow]: ...
    def __getitem__(self, index: int | slice) -> TokenRow | list[TokenRow]:
        if isinstance(index, slice):
            return [self._row(one) for one in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return self._row(index % len(self))

    def _row(self, index: int) -> TokenRow:
        number = bisect_right(self._ends, index)
        return self._segments[number].row(index - (self._ends[number - 1] if number else 0))


class RowFiles:
    """The files of rows, without names: a context, at whose end they are closed. What was read of them stays.

    descriptors: of the files of another process, which are written here and read there.
    Raises OutputError where there is no folder for temporary files.
    """

    def __init__(self, descriptors: Sequence[int] | None = None) -> None:
        kinds = _ROW, np.dtype("i4"), np.dtype("f8")
        given = descriptors or (None,) * len(kinds)
        with ExitStack() as closing:
            columns = [
                closing.enter_context(_Column(kind, descriptor)) for kind, descriptor in zip(kinds, given, strict=True)
            ]
            self._closing = closing.pop_all()
        self.rows, self.tokens, self.weights = columns

    def __enter__(self) -> "RowFiles":
        return self

    def __exit__(self, *exception: object) -> None:
        self._closing.close()

    @property
    def descriptors(self) -> tuple[int, ...]:
        return self.rows.descriptor, self.tokens.descriptor, self.weights.descriptor

    def read(self, extents: Sequence[Extent]) -> list[RowSegment]:
        """All that was written, extent by extent."""
        rows, tokens, weights = self.rows.read(), self.tokens.read(), self.weights.read()
        segments: list[RowSegment] = []
        row = token = weight = 0
        for extent in extents:
            row_end, token_end = row + extent.num_rows, token + extent.num_tokens
            weight_end = weight + extent.num_weights
            parts = rows[row:row_end], tokens[token:token_end], weights[weight:weight_end]
            segments.append(RowSegment(*parts, extent.file, extent.places))
            row, token, weight = row_end, token_end, weight_end
        return segments


class TokenRowWriter:
    """Takes rows in order, one at a time, and writes them to `files`. Raises OutputError where the folder for temporary
    files is full."""

    def __init__(self, files: RowFiles) -> None:
        self._files = files
        self._new: list[EncodedRow] = []
        self._table: list[tuple[int, int, int, float, int]] = []
        self._ids = array("i")
        self._begin()

    def _begin(self) -> None:
        self._end = self._weights_end = 0
        self._count = 0
        self._file: str | None = None
        self._places: dict[int, str] = {}

    def add(self, row: EncodedRow, *, weight: float, index: int, place: str) -> None:
        file, _, line = place.rpartition(":")
        if self._file is None:
            self._file = file
        number = int(line) if line.isdecimal() and len(line) < 18 else 0
        if file != self._file or line != str(number):
            self._places[self._count] = place
        self._end += len(row.ids)
        if row.part_weights is not None:
            self._weights_end += len(row.part_weights)
        self._count += 1
        self._new.append(row)
        self._table.append((self._end, index, number, weight, self._weights_end))
        if len(self._new) == _ROWS_PER_WRITE:
            self._write()

    def end_extent(self) -> Extent:
        """The rows that were added since the last one, all of which are in the files now."""
        self._write()
        for column in (self._files.rows, self._files.tokens, self._files.weights):
            column.flush()
        extent = Extent(self._count, self._end, self._weights_end, self._file or "", self._places)
        self._begin()
        return extent

    def _write(self) -> None:
        new, self._new = self._new, []
        for row in new:
            self._ids.fromlist(row.ids)
        runs = [run for row in new for run in row.runs]
        trained = np.repeat(
            np.fromiter((run[1] for run in runs), bool, len(runs)),
            np.fromiter((run[0] for run in runs), np.int64, len(runs)),
        )
        ids = np.frombuffer(self._ids, np.int32) if self._ids else np.empty(0, np.int32)
        self._files.tokens.append(np.where(trained, ids, -1 - ids))
        del ids
        self._ids = array("i")
        self._files.weights.append(np.array([*chain.from_iterable(row.part_weights or () for row in new)], np.float64))
        self._files.rows.append(np.array(self._table, _ROW))
        self._table.clear()


class _Column:
    """Numbers of one kind, written one after another and then read as a map of the file."""

    def __init__(self, dtype: np.dtype[Any], descriptor: int | None = None) -> None:
        self._dtype = dtype
        with _disk():
            self._file = (
                tempfile.TemporaryFile(prefix="tutelage-rows-")  # noqa: SIM115 - lives as long as the map
                if descriptor is None
                else os.fdopen(descriptor, "r+b")
            )

    def __enter__(self) -> "_Column":
        return self

    def __exit__(self, *exception: object) -> None:
        with _disk():
            self._file.close()

    @property
    def descriptor(self) -> int:
        return self._file.fileno()

    def append(self, values: NDArray[Any]) -> None:
        with _disk():
            self._file.write(values.tobytes())

    def flush(self) -> None:
        with _disk():
            self._file.flush()

    def read(self) -> NDArray[Any]:
        with _disk():
            if os.fstat(self.descriptor).st_size == 0:
                return np.empty(0, self._dtype)
            # A plain array over the map: slices of numpy's own kind of map are slower.
            return np.asarray(np.memmap(self._file, self._dtype, "r"))


@contextmanager
def _disk() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        # tempfile knows of no folder where it finds none that can be written to.
        folder = tempfile.tempdir or os.environ.get("TMPDIR", "the folder for temporary files")
        raise OutputError(
            f"{folder}: the tokenised rows cannot be written ({error.strerror}); free space there, or "
            "set TMPDIR to another folder"
        ) from error
