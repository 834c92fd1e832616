"""What a job leaves in `uploads/` becomes files of the server and events of the run. Not here: when."""

import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from tutelage.client.results import NewEvent
from tutelage.client.worker_api import WorkerApi
from tutelage.errors import DataError

PURPOSE = "result"


def left_in(uploads: Path, say: Callable[[str], None]) -> Iterator[Path]:
    """Regular files in the folder and below, by name. Links are left out, wherever they lead: `say` is told.

    Raises DataError behind the last one where a folder cannot be looked into: what is in it would be lost unseen.
    """
    if uploads.is_symlink():
        say("uploads is a link: nothing in it is uploaded; make it a folder")
        return
    if not uploads.is_dir():
        return
    closed: list[OSError] = []
    for folder, folders, names in os.walk(uploads, onerror=closed.append):
        folders.sort()
        for name in [*folders, *sorted(names)]:
            path = Path(folder, name)
            try:
                mode = path.lstat().st_mode
            except OSError as error:  # a folder that shows names and nothing else
                closed.append(error)
                continue
            if stat.S_ISREG(mode):
                yield path
            elif not stat.S_ISDIR(mode):
                what = "a link" if stat.S_ISLNK(mode) else "no regular file"
                say(f"{path.relative_to(uploads.parent)} is {what}: it is not uploaded; copy what it is")
    if closed:
        name = Path(os.fsdecode(closed[0].filename)).relative_to(uploads.parent)
        raise DataError(f"{name}: cannot be read ({closed[0].strerror}); leave what the worker's user may read")


def upload_left(
    api: WorkerApi, run_id: str, uploads: Path, say: Callable[[str], None], check: Callable[[], None]
) -> None:
    """Upload each file and report it as `{"file": id, "path": path in uploads}`.

    check: called before each; what it raises ends this. Raises DataError for the first that the server does not take,
    when all others are there.
    """
    refused: DataError | None = None
    for path in left_in(uploads, say):
        check()
        name = path.relative_to(uploads).as_posix()
        try:
            name.encode()
            file = api.upload(path, PURPOSE)
        except UnicodeEncodeError:
            refused = refused or DataError(f"uploads/{name!a}: the name is no UTF-8; give the file another one")
            continue
        except DataError as error:
            refused = refused or error
            continue
        identity = hashlib.sha256(name.encode()).hexdigest()[:32]
        api.append_events(run_id, [NewEvent(f"upload-{identity}", {"file": file.id, "path": name}, file.id)])
    if refused is not None:
        raise refused
