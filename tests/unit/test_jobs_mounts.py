"""Mount targets: inside the job's folder or refused, whatever is written and whatever links lie there."""

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.errors import JobError
from tutelage.jobs.mounts import MAX_MOUNTS, checked_mounts, checked_target, place_in

FILE, OTHER = "custom_job_file:file-0123456789ab", "custom_job_file:file-ba9876543210"
PARTS = st.sampled_from(["..", ".", "", "a", "b", "link", "up", "~", "~root", "C:", "\\", "a\\..", "…", " ", "..."])
TARGETS = st.lists(PARTS, min_size=1, max_size=6).map("/".join) | st.text(max_size=12)


@given(TARGETS)
def test_no_target_leads_out_of_the_folder(target: str) -> None:
    """In a folder with a link to its parent and one to a file outside: what is accepted lies below the folder."""
    with tempfile.TemporaryDirectory() as name:
        outside = Path(name)
        folder = outside / "run"
        (folder / "a").mkdir(parents=True)
        (outside / "secret").write_text("untouched")
        (folder / "up").symlink_to(outside)
        (folder / "link").symlink_to(outside / "secret")
        (folder / "b").symlink_to("a")  # a link that stays inside is no way out
        try:
            path = place_in(folder, target)
        except JobError:
            return
        real = Path(os.path.realpath(path))
        assert real.is_relative_to(folder.resolve())
        assert real != folder.resolve()
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.is_dir():
            path.write_text("mounted")
        assert (outside / "secret").read_text() == "untouched"
        assert sorted(path.name for path in outside.iterdir()) == ["run", "secret"]


@pytest.mark.parametrize(
    ("target", "sentence"),
    [
        ("", "give a path of up to 1024 characters"),
        ("a" * 1025, "give a path of up to 1024 characters"),
        ("a\nb", "without \\\\ and control characters"),
        ("a\0b", "without \\\\ and control characters"),
        ("a\\b", "without \\\\ and control characters"),
        ("/etc/passwd", "it leads out of the job's folder; give a path inside it, without '..'"),
        ("a/../../b", "it leads out of the job's folder"),
        ("a/..", "it leads out of the job's folder"),
        ("~/x", "it leads out of the job's folder"),
        ("C:/x", "it leads out of the job's folder"),
        (".", "this is the job's folder itself; name the file in it"),
        ("./.", "this is the job's folder itself"),
        ("a\ud800", "mount target"),
        ("a" * 256 + "/b", "mount target"),
    ],
    ids=lambda value: ascii(value)[:20],
)
def test_targets_that_are_refused(target: str, sentence: str) -> None:
    with pytest.raises(JobError, match=sentence):
        checked_target(target)


def test_targets_are_stored_in_one_form() -> None:
    assert checked_mounts({"./a//b/./c.txt": FILE, "d": OTHER}) == {"a/b/c.txt": FILE, "d": OTHER}
    assert checked_mounts({"a": FILE, "./a": FILE}) == {"a": FILE}


def test_mounts_that_are_refused() -> None:
    with pytest.raises(JobError, match="two files for 'a'; give each its own target"):
        checked_mounts({"a": FILE, "./a": OTHER})
    for mounts in ({"a": FILE, "a/b/c": OTHER}, {"a/b/c": OTHER, "a": FILE}):
        with pytest.raises(JobError, match="'a' is a file and cannot hold 'a/b/c'; rename one"):
            checked_mounts(mounts)
    for file_id in ("", "x", f"{FILE}\n", FILE.upper(), f" {FILE}"):
        with pytest.raises(JobError, match="is not the id of a file; upload it first"):
            checked_mounts({"a": file_id})
    with pytest.raises(JobError, match=f"are more than {MAX_MOUNTS}; mount an archive and unpack it"):
        checked_mounts({str(number): FILE for number in range(MAX_MOUNTS + 1)})


@pytest.mark.parametrize("target", ["params.json/x", "./job.json//a/b"])
def test_what_the_worker_writes_as_a_file_is_no_folder(target: str) -> None:
    """Mounted there, it would be one, and the worker could not write its own."""
    with pytest.raises(JobError, match=r"mount target '(params|job)\.json/.*': the worker puts its own there; rename"):
        checked_mounts({target: FILE})
    assert checked_mounts({"files/x": FILE, "params.json5/x": FILE}) == {"files/x": FILE, "params.json5/x": FILE}


@pytest.mark.parametrize("target", ["params.json", "job.json", "uploads"])
def test_what_the_worker_puts_there_itself_is_no_target(target: str) -> None:
    """The folder holds these whatever is mounted; below `uploads` a job may begin with a file."""
    with pytest.raises(JobError, match=target):
        checked_mounts({target: FILE})
    assert checked_mounts({f"sub/{target}": FILE, "uploads/a": FILE}) == {f"sub/{target}": FILE, "uploads/a": FILE}
