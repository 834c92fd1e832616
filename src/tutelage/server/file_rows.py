"""Whether the rows of an upload are what its purpose says. Not here: how (`data.purposes`), keeping it (`jobs`)."""

from tutelage.data.purposes import checked_purpose as purpose_of
from tutelage.errors import DataError
from tutelage.jobs.stored_files import Upload


def checked_purpose(upload: Upload, purpose: str, filename: str) -> str:
    """The purpose under which an upload is kept. Raises DataError that lists the bad rows, by the user's file name."""
    upload.finish()
    try:
        return purpose_of(upload.path, purpose, upload.max_bytes)
    except DataError as error:
        # What the file is called here is of no use to who sent it.
        text = str(error).replace(str(upload.path), filename).replace(upload.path.name, filename)
        raise type(error)(text) from None
