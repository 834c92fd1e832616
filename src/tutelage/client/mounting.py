"""Files and folders of this machine that a job gets into its folder. Not here: files in options (`local_files.py`)."""

import os
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from tutelage.client.files import Files
from tutelage.errors import ConfigError
from tutelage.jobs.mounts import checked_mounts, checked_target

MOUNTED_AS = "custom_job_file"
NOT_MOUNTED = ("__pycache__",)
"""Folders that are left out of a mounted one: they would make the same work another job."""


def upload_mounts(files: Files, mounts: Mapping[str, str | os.PathLike[str]]) -> dict[str, str]:
    """Upload files, and folders with what is in them: path in the job's folder to file id. mounts: source to target.

    Raises ConfigError for a source that is not there, JobError for a target that leads out of the job's folder; both
    before anything is uploaded.
    """
    found: dict[str, Path] = {}
    for source, target in mounts.items():
        path, place = Path(source).expanduser(), str(target)
        if path.is_file():
            # A folder as target takes the file in under its own name.
            into_folder = place.endswith("/") or not PurePosixPath(place).parts
            named = f"{place}/{path.name}" if into_folder else place
            found[checked_target(named).as_posix()] = path
        elif path.is_dir():
            for file in _files_below(path):
                found[checked_target(f"{place}/{file.relative_to(path).as_posix()}").as_posix()] = file
        else:
            raise ConfigError(f"mount: '{source}' is not there; give a file or a folder as seen from {Path.cwd()}")
    checked_mounts(dict.fromkeys(found, f"{MOUNTED_AS}:file-{'0' * 12}"))
    return {target: files.upload(path, MOUNTED_AS).id for target, path in found.items()}


def _files_below(folder: Path) -> list[Path]:
    found: list[Path] = []
    for path, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name not in NOT_MOUNTED]
        found += [Path(path, name) for name in names]
    return sorted(found)
