"""Tokenised rows on disk: a sequence of `TokenRow`s whose memory does not grow with their number.

The rows go to files without a name in the folder for temporary files (TMPDIR), which end with the process, however it
ends. 1,000,000 rows of 200 tokens take 850 MB there.
"""

import os
import tempfile
from array import array
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import chain
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from tutelage.data.rows import IGNORE_INDEX, EncodedRow, TokenRow
from tutelage.errors import OutputError

_ROW = np.dtype([("end", "i8"), ("row", "i8"), ("line", "i8"), ("weight", "f8"), ("weights_end", "i8")])
"""Of a row: where its tokens end, its number, the line of its file, its weight, where the weights of its tokens end,
which are those before it if it has none."""
_ROWS_PER_WRITE = 1024


class TokenRows(Sequence[TokenRow]):
    """Rows in order, made anew each time they are asked for. `lengths`: their numbers of tokens."""

    def __init__(
        self,
        rows: NDArray[Any],
        tokens: NDArray[np.int32],
        weights: NDArray[np.float64],
        file: str,
        places: dict[int, str],
    ) -> None:
        """tokens: ids of all rows, -1 - id for those that are not trained. file: of the places, which are `file:line`
        but for those in `places`, by index."""
        self._rows, self._tokens, self._weights = rows, tokens, weights
        self._file, self._places = file, places

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def num_tokens(self) -> int:
        return len(self._tokens)

    @property
    def lengths(self) -> NDArray[np.int64]:
        return np.diff(self._rows["end"], prepend=0)

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
        end, row, line, weight, weights_end = self._rows[index].item()
        start, _, _, _, weights_start = self._rows[index - 1].item() if index else (0, 0, 0, 0.0, 0)
        signed = self._tokens[start:end]
        trained = signed >= 0
        ids = np.where(trained, signed, -1 - signed).tolist()
        labels = np.where(trained, signed, IGNORE_INDEX).tolist()
        weights = self._weights[weights_start:weights_end].tolist() if weights_end > weights_start else None
        return TokenRow(ids, labels, weight, row, self._places.get(index, f"{self._file}:{line}"), weights)


class TokenRowWriter:
    """Takes rows in order, one at a time; `rows()` are all of them, after which none is taken any more.

    A context, at whose end the files are closed; rows that were asked for stay. Raises OutputError where the folder for
    temporary files is full.
    """

    def __init__(self) -> None:
        self._rows, self._tokens, self._weights = _Column(_ROW), _Column(np.dtype("i4")), _Column(np.dtype("f8"))
        self._new: list[EncodedRow] = []
        self._table: list[tuple[int, int, int, float, int]] = []
        self._ids = array("i")
        self._end = self._weights_end = 0
        self._count = 0
        self._file: str | None = None
        self._places: dict[int, str] = {}

    def __enter__(self) -> "TokenRowWriter":
        return self

    def __exit__(self, *exception: object) -> None:
        with ExitStack() as closing:  # all of them, whatever one says
            for column in (self._rows, self._tokens, self._weights):
                closing.callback(column.close)

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

    def rows(self) -> TokenRows:
        self._write()
        rows, tokens, weights = self._rows.read(), self._tokens.read(), self._weights.read()
        return TokenRows(rows, tokens, weights, self._file or "", self._places)

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
        self._tokens.append(np.where(trained, ids, -1 - ids))
        del ids
        self._ids = array("i")
        self._weights.append(np.array([*chain.from_iterable(row.part_weights or () for row in new)], np.float64))
        self._rows.append(np.array(self._table, _ROW))
        self._table.clear()


class _Column:
    """Numbers of one kind, written one after another and then read as a map of the file."""

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self._dtype = dtype
        with _disk():
            self._file = tempfile.TemporaryFile(prefix="tutelage-rows-")  # noqa: SIM115 - lives as long as the map

    def append(self, values: NDArray[Any]) -> None:
        with _disk():
            self._file.write(values.tobytes())

    def read(self) -> NDArray[Any]:
        with _disk():
            self._file.flush()
            if self._file.tell() == 0:
                return np.empty(0, self._dtype)
            # A plain array over the map: slices of numpy's own kind of map are slower.
            return np.asarray(np.memmap(self._file, self._dtype, "r"))

    def close(self) -> None:
        with _disk():
            self._file.close()


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
