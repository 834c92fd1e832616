"""Many conversations as token ids: what `ChatTemplate.encode` says of each, at the speed of the tokenizer.

Most text is looked up word by word (word_tokenizer.py). The rest goes to the tokenizer, which is Rust and waits for
nobody: while it works on some pieces of text on all cores, Python goes on with the next conversations.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

from tutelage.data.chat_template import ChatTemplate
from tutelage.data.conversations import Conversation
from tutelage.data.piece_tokenizer import Piece, PieceTokenizer
from tutelage.data.rendering import REFUSALS, Rendered, quick_renderer
from tutelage.data.rows import EncodedRow
from tutelage.data.template_shapes import Shapes
from tutelage.errors import DataError

ROWS_PER_BATCH = 128  # some hundred kilobytes of text: enough for all cores
_AHEAD = 2  # batches that wait for the tokenizer or their results, while another one is rendered


@dataclass(frozen=True)
class RowResult:
    """What became of a conversation: token ids, or why it cannot be used."""

    index: int
    conversation: Conversation
    row: EncodedRow | DataError


class RowEncoder:
    """Encodes conversations by a template; what it learned of words and turns is kept from one call to the next."""

    def __init__(self, template: ChatTemplate) -> None:
        self._template = template
        self._tokenizer = PieceTokenizer(template)
        self._shapes = Shapes(*quick_renderer(template.tokenizer, template.source), template.source)

    def encode(
        self, conversations: Iterable[Conversation], responses_only: bool = True, num_before: int = 0
    ) -> Iterator[RowResult]:
        """Each conversation's ids or DataError, in order; those of weight 0 are left out, though they are counted.

        num_before: conversations of the file that come before these, for `Shapes.count_from`.
        Raises ModelError where `ChatTemplate.encode` does.
        """
        tokenizer = self._tokenizer
        self._shapes.count_from(num_before)
        weighed = ((index, one) for index, one in enumerate(conversations) if one.weight != 0)
        waiting: deque[tuple[_Batch, Future[list[list[int]]] | None]] = deque()
        with ThreadPoolExecutor(1) as pool:  # a second thread would only wait for Python's lock, and make others wait
            while rows := list(islice(weighed, ROWS_PER_BATCH)):
                batch = _Batch(self._template, rows, self._shapes)
                batch.ids = tokenizer.quick(batch.pieces)
                left = [piece for piece, ids in zip(batch.pieces, batch.ids, strict=True) if ids is None]
                waiting.append((batch, pool.submit(tokenizer.ids, left) if left else None))
                if len(waiting) > _AHEAD:
                    yield from _finished(*waiting.popleft(), responses_only)
            while waiting:
                yield from _finished(*waiting.popleft(), responses_only)


class _Batch:
    """Some conversations, rendered. `pieces`: those of all of them, one after another; `ids`: what is known of each."""

    def __init__(self, template: ChatTemplate, rows: Sequence[tuple[int, Conversation]], shapes: Shapes) -> None:
        self.template, self.rows = template, rows
        self.rendered: list[Rendered | DataError] = []
        self.pieces: list[Piece] = []
        self.ids: Sequence[list[int] | None] = ()
        self.num_pieces: list[int] = []
        for _, conversation in rows:
            pieces: list[Piece] = []
            try:
                rendered = shapes.locate(conversation.messages)
                pieces = rendered.pieces()
            except REFUSALS as error:
                rendered = template.refusal(conversation.messages, conversation.place, error)
            self.rendered.append(rendered)
            self.num_pieces.append(len(pieces))
            self.pieces += pieces


def _finished(batch: _Batch, left: "Future[list[list[int]]] | None", responses_only: bool) -> Iterator[RowResult]:
    following = iter(() if left is None else left.result())
    ids = [next(following) if one is None else one for one in batch.ids]
    start = 0
    for (index, conversation), rendered, count in zip(batch.rows, batch.rendered, batch.num_pieces, strict=True):
        row: EncodedRow | DataError
        if isinstance(rendered, DataError):
            row = rendered
        else:
            try:
                row = batch.template.encoded(conversation, rendered, ids[start : start + count], responses_only)
            except DataError as error:
                row = error
        start += count
        yield RowResult(index, conversation, row)
