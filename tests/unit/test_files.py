"""Folders and files: refused in time, there whole or not at all, readable after a kill."""

import json
import math
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.errors import OutputError
from tutelage.files import JsonLinesFile, make_folder, require_new_folder, write_bytes, write_json, write_json_lines

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
json_rows = st.dictionaries(st.text(), json_values, max_size=4)


def require(path: Path) -> None:
    require_new_folder(path, "--output", "remove it first")


def test_a_new_or_empty_folder_is_accepted_and_left_as_it_is(tmp_path: Path) -> None:
    require(tmp_path)
    require(tmp_path / "new" / "below")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_holds_something_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(OutputError) as caught:
        require(tmp_path)
    assert str(caught.value) == f"{tmp_path}: the folder is not empty; choose another --output, or remove it first"


def test_a_file_in_the_folders_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "demo").write_text("a file")
    with pytest.raises(OutputError, match="demo: this is a file; choose another --output"):
        require(tmp_path / "demo")
    with pytest.raises(OutputError, match="cannot be written"):
        require(tmp_path / "demo" / "below")
    with pytest.raises(OutputError, match="cannot be made"):
        make_folder(tmp_path / "demo" / "below", "--output")


def test_an_unwritable_place_is_refused() -> None:
    with pytest.raises(OutputError, match="/proc/demo: cannot be written"):
        require(Path("/proc/demo"))


def test_a_file_is_replaced_whole_or_stays_as_it_was(tmp_path: Path) -> None:
    """A folder in the file's place stands for whatever refuses the last step."""
    path = tmp_path / "results.json"
    write_json(path, {"a": "ü\ud83d"})
    assert json.loads(path.read_text()) == {"a": "ü\ud83d"}
    write_json(path, {"b": 2})
    assert json.loads(path.read_text()) == {"b": 2}
    with pytest.raises(OutputError, match="cannot be written"):
        write_bytes(path / "below", b"x")
    (tmp_path / "taken").mkdir()
    with pytest.raises(OutputError, match="taken: cannot be written"):
        write_bytes(tmp_path / "taken", b"x")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["results.json", "taken"]


def test_lines_written_at_once_are_read_as_lines_appended(tmp_path: Path) -> None:
    rows = [{"n": 1, "x": math.nan}, {"text": "a\nb"}]
    write_json_lines(tmp_path / "rows.jsonl", rows)
    assert list(JsonLinesFile(tmp_path / "rows.jsonl").rows()) == [{"n": 1, "x": None}, {"text": "a\nb"}]


def test_no_file_has_no_rows(tmp_path: Path) -> None:
    assert list(JsonLinesFile(tmp_path / "samples.jsonl").rows()) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_null_at_any_depth(tmp_path: Path, value: float) -> None:
    """JSON knows no NaN; a reader in another language would refuse the whole line."""
    file = JsonLinesFile(tmp_path / "rows.jsonl")
    file.append({"a": value, "b": [1.0, value], "c": {"d": (value, 2)}, "e": 0.25})
    text = (tmp_path / "rows.jsonl").read_text(encoding="utf-8")
    assert text == '{"a": null, "b": [1.0, null], "c": {"d": [null, 2]}, "e": 0.25}\n'


def test_a_line_torn_inside_a_character(tmp_path: Path) -> None:
    file = JsonLinesFile(tmp_path / "rows.jsonl")
    file.append({"text": "one"})
    file.append({"text": "é"})
    content = file.path.read_bytes()
    file.path.write_bytes(content[: content.index("é".encode()) + 1])
    assert list(file.rows()) == [{"text": "one"}]


def test_a_last_line_without_its_newline_counts(tmp_path: Path) -> None:
    """Only the newline is missing: the row is whole, and the next one does not swallow it."""
    file = JsonLinesFile(tmp_path / "rows.jsonl")
    file.append({"n": 1})
    file.path.write_bytes(file.path.read_bytes()[:-1])
    assert list(file.rows()) == [{"n": 1}]
    file.append({"n": 2})
    assert list(file.rows()) == [{"n": 1}, {"n": 2}]


def test_half_a_surrogate_pair_does_not_stop_a_run(tmp_path: Path) -> None:
    """`"\\ud83d"` is valid JSON and no valid UTF-8; a run must not end because a sample holds one."""
    file = JsonLinesFile(tmp_path / "samples.jsonl")
    file.append({"text": "a\ud83db"})
    file.append({"text": "c"})
    first, second = file.rows()
    assert first["text"] == "a\ud83db"
    assert second == {"text": "c"}


def test_a_full_disk_is_an_output_error() -> None:
    """`/dev/full` refuses every byte, as a full disk does."""
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("this system has no /dev/full")
    with pytest.raises(OutputError, match="No space left on device"):
        JsonLinesFile(full).append({"n": 1})


@given(st.lists(json_rows, max_size=5))
def test_any_rows_round_trip(rows: list[dict[str, Any]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = JsonLinesFile(Path(folder) / "rows.jsonl")
        for row in rows:
            file.append(row)
        assert list(file.rows()) == rows
        lines = file.path.read_bytes().splitlines() if rows else []
        assert [json.loads(line) for line in lines] == rows


@given(st.lists(json_rows, min_size=1, max_size=4), st.data())
def test_cut_anywhere_whole_rows_are_read_and_writing_goes_on(rows: list[dict[str, Any]], data: st.DataObject) -> None:
    """However many bytes a kill leaves, the rows whose bytes are all there are read, and no others."""
    with tempfile.TemporaryDirectory() as folder:
        file = JsonLinesFile(Path(folder) / "rows.jsonl")
        ends: list[int] = []
        for row in rows:
            file.append(row)
            ends.append(file.path.stat().st_size - 1)  # without the newline the row is whole already
        left = data.draw(st.integers(0, ends[-1] + 1), label="bytes left")
        file.path.write_bytes(file.path.read_bytes()[:left])
        whole = [row for row, end in zip(rows, ends, strict=True) if end <= left]
        assert list(file.rows()) == whole
        file.append({"after": True})
        assert list(file.rows()) == [*whole, {"after": True}]
