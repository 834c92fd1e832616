"""Where in a job's folder a mounted file goes. Nothing may get out of it: no `..`, no absolute path, no link."""

import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from tutelage.errors import JobError
from tutelage.jobs.identity import FILE_ID

MAX_PATH = 1024
MAX_MOUNTS = 10_000
MAX_PART = 255
"""Bytes of one name in a path, on every usual file system."""
FILES_OF_THE_WORKER = ("params.json", "job.json")
OF_THE_WORKER = (*FILES_OF_THE_WORKER, "uploads", "files")
"""What a run's folder holds anyway."""
_FORBIDDEN = re.compile(r"[\x00-\x1f\x7f\\\ud800-\udfff]")


def checked_target(target: str) -> PurePosixPath:
    """The path in the job's folder, without `.` and doubled slashes. Raises JobError for one that could get out."""
    shown = ascii(target[:80])
    if not target or len(target) > MAX_PATH or _FORBIDDEN.search(target):
        raise JobError(
            f"mount target {shown}: give a path of up to {MAX_PATH} characters without \\ and control characters"
        )
    path = PurePosixPath(target)
    if path.is_absolute() or ".." in path.parts or re.match(r"^[A-Za-z]:", target) or target.startswith("~"):
        raise JobError(f"mount target {shown}: it leads out of the job's folder; give a path inside it, without '..'")
    if any(len(part.encode()) > MAX_PART for part in path.parts):
        raise JobError(f"mount target {shown}: a name in it is longer than {MAX_PART} bytes; shorten it")
    if not path.parts:
        raise JobError(f"mount target {shown}: this is the job's folder itself; name the file in it")
    return path


def checked_mounts(mounts: Mapping[str, str]) -> dict[str, str]:
    """Path in the job's folder to file id, as it is stored. Raises JobError."""
    if len(mounts) > MAX_MOUNTS:
        raise JobError(f"mounted_files: {len(mounts)} are more than {MAX_MOUNTS}; mount an archive and unpack it")
    checked: dict[str, str] = {}
    for target, file_id in mounts.items():
        parts = checked_target(target).parts
        path = "/".join(parts)
        if path in OF_THE_WORKER or parts[0] in FILES_OF_THE_WORKER:  # a file of that name can be no folder
            raise JobError(f"mount target '{path}': the worker puts its own there; rename the target")
        if not FILE_ID.fullmatch(file_id):
            raise JobError(f"mounted_files: '{file_id[:80]}' is not the id of a file; upload it first")
        if path in checked and checked[path] != file_id:
            raise JobError(f"mounted_files: two files for '{path[:80]}'; give each its own target")
        checked[path] = file_id
    for path in checked:
        above = next((str(parent) for parent in PurePosixPath(path).parents if str(parent) in checked), None)
        if above is not None:
            raise JobError(f"mounted_files: '{above[:80]}' is a file and cannot hold '{path[:80]}'; rename one")
    return checked


def place_in(folder: Path, target: str) -> Path:
    """Where the file goes on this machine. Raises JobError also where a link in the folder leads out of it."""
    path = folder.joinpath(*checked_target(target).parts)
    if not path.parent.resolve().is_relative_to(folder.resolve()) or path.is_symlink():
        raise JobError(f"mount target {target[:80]!a}: a link leads out of the job's folder; rename the target")
    return path
