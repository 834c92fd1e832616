"""Writes the token rows of a file or of a part of it, and counts what became of its rows. In this process only: see
part_workers.py for several."""

import gc
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tutelage.data.batch_encoding import RowEncoder
from tutelage.data.chat_template import ChatTemplate
from tutelage.data.conversations import Conversation, ConversationFile
from tutelage.data.jsonl import FilePart
from tutelage.data.tally import Tally
from tutelage.data.token_rows import Extent, RowFiles, TokenRows, TokenRowWriter
from tutelage.errors import DataError, OutputError


@dataclass(frozen=True)
class Task:
    """How rows are to be made, whichever they are."""

    template: ChatTemplate
    max_seq_length: int
    responses_only: bool


@dataclass(frozen=True)
class PreparedPart:
    """What became of the rows of a part, and where those that were kept are; they are numbered from 0."""

    tally: Tally
    extent: Extent


class OnePassNeededError(Exception):
    """Several processes cannot do it: none can be started, the task means nothing there, or a part holds what ends the
    preparation. Which error is the first of the file is seen in a pass from its start."""


class PartPreparer:
    """Prepares parts of a file, one after another; what was learned of words and turns is kept."""

    def __init__(self, task: Task, files: RowFiles) -> None:
        self._task = task
        self._encoder = RowEncoder(task.template)
        self._writer = TokenRowWriter(files)

    def prepare(self, path: Path, part: FilePart) -> PreparedPart:
        """Raises OnePassNeededError, OutputError."""
        # The rows that are rendered for a check are those of a single pass, whoever has the part, where every line is
        # a row.
        try:
            return self.prepare_rows(ConversationFile(path, part), part.first_line - 1)
        except OutputError:
            raise
        except Exception as error:  # a template raises what it likes
            raise OnePassNeededError(str(error)) from error

    def prepare_rows(self, conversations: Iterable[Conversation], num_before: int = 0) -> PreparedPart:
        """num_before: conversations of the file that come before them."""
        tally = Tally(self._task.max_seq_length)
        for result in self._encoder.encode(tally.seen(conversations), self._task.responses_only, num_before):
            row, conversation = result.row, result.conversation
            place = conversation.place
            if isinstance(row, DataError):
                tally.refuse(str(row))
            elif row.num_trained == 0:
                tally.refuse(
                    f"{place}: no token of the row is trained; remove the row or set 'train' of an answer to true"
                )
            elif tally.fits(place, len(row.ids)):
                self._writer.add(row, weight=conversation.weight, index=result.index, place=place)
        return PreparedPart(tally, self._writer.end_extent())


def prepare_in_one_pass(task: Task, conversations: Iterable[Conversation]) -> tuple[Tally, TokenRows]:
    """All rows, from the first to the last. Raises what reading and encoding them does."""
    with ExitStack() as stack:
        stack.enter_context(old_objects_left_alone())
        files = stack.enter_context(RowFiles())
        prepared = PartPreparer(task, files).prepare_rows(conversations)
        return prepared.tally, TokenRows(files.read([prepared.extent]))


@contextmanager
def old_objects_left_alone() -> Iterator[None]:
    """Garbage is looked for among new objects only: imports leave some 400,000, which would be gone through again and
    again while rows come and go. Nothing is changed where somebody else has done so."""
    if gc.get_freeze_count():
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
