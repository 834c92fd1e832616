"""The head one block of the vocabulary after the other, in memory that is there already.

A block's logits are in the processor's caches while they are worked on, and so are the weights of a block for
two chunks of positions: the gradients of the one before and the logits of the next. Which losses are computed
is elsewhere.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from tutelage.losses.gradient_sums import GradientSums
from tutelage.losses.head import AnyHead, Head

TILE_ELEMENTS = 2**19
"""Logits that one thread makes of a block: 2 MiB in float32, about what a core's own cache holds."""

MIN_TILE_WIDTH = 512
"""Vocabulary entries one thread takes of a block, or a multiple: fewer make small products, and rows of a tile that
do not begin at a multiple of the vector width make slow ones."""

MAX_BLOCK_BYTES = 2**26
"""Logits of one block for all threads together. Where many threads would take more, they share one smaller tile."""

MAX_SUM_BYTES = 2**25
"""Sums of a chunk's gradients to its hidden states. Where one for each thread would take more, they share one."""


@dataclass(frozen=True)
class Block:
    """The vocabulary entries `start` to `stop`, cut into `pieces` of the same width, one for each thread."""

    start: int
    stop: int
    pieces: int

    def entries(self, tensor_VX: Tensor) -> Tensor:
        """The block's part of a tensor whose first axis is the vocabulary: [pieces, width, ...]."""
        part = tensor_VX[self.start : self.stop]
        return part.view(self.pieces, part.shape[0] // self.pieces, *part.shape[1:])

    def tile(self, memory: Tensor, rows: int, first: int = 0) -> Tensor:
        """[pieces, rows, width] of flat memory, from its element `first` on."""
        size = self.stop - self.start
        return memory[first : first + rows * size].view(self.pieces, rows, size // self.pieces)


def vocabulary_blocks(vocabulary: int, rows: int, like: Tensor) -> list[Block]:
    """Blocks that cover the vocabulary, for tiles of `rows` rows of the dtype of `like`; the last is the smallest."""
    rows, pieces = max(rows, 1), torch.get_num_threads()
    size = pieces * _whole_width(TILE_ELEMENTS // rows)
    if size * rows * like.element_size() > MAX_BLOCK_BYTES:
        pieces, size = 1, _whole_width(MAX_BLOCK_BYTES // (rows * like.element_size()))
    blocks: list[Block] = []
    for start in range(0, vocabulary, size):
        stop = min(start + size, vocabulary)
        blocks.append(Block(start, stop, pieces if (stop - start) % pieces == 0 else 1))
    return blocks


def _whole_width(entries: int) -> int:
    return max(entries // MIN_TILE_WIDTH, 1) * MIN_TILE_WIDTH


@dataclass(frozen=True)
class Workspace:
    """The memory in which the tiles of chunks of at most `rows` rows are made; flat, used again and again."""

    blocks: list[Block]
    memory: Tensor
    spare: Tensor
    keeps: bool
    """Whether the tiles of all blocks stay until the next chunk has its own, block by block."""

    @classmethod
    def for_tiles(cls, like: Tensor, vocabulary: int, rows: int, *, keeps: bool, spare_rows: int = 0) -> "Workspace":
        """For tiles of `rows` rows, and besides `spare_rows` rows of one block, with dtype and device of `like`."""
        blocks = vocabulary_blocks(vocabulary, rows, like)
        memory = like.new_empty(rows * (vocabulary if keeps else blocks[0].stop))
        return cls(blocks, memory, like.new_empty(spare_rows * blocks[0].stop), keeps)

    def tile(self, block: Block, rows: int) -> Tensor:
        """[pieces, rows, width]. A chunk that is not larger than the one before overwrites none of its later tiles."""
        return block.tile(self.memory, rows, rows * block.start if self.keeps else 0)

    def spare_tiles(self, block: Block, rows: int, count: int) -> list[Tensor]:
        """`count` more tiles of the block, each [pieces, rows, width]."""
        return [block.tile(self.spare, rows, number * rows * (block.stop - block.start)) for number in range(count)]


def can_go_by_blocks(head: AnyHead) -> bool:
    """Whether the head is one that this module knows: float32 or float64 on the CPU throughout, without a soft-cap.

    With half precision, or under autocast, sums over blocks would be rounded once for each block. On other devices
    nobody has measured it: tiles are made for a core's cache, and each block asks for a number, which a GPU waits for.
    """
    return (
        isinstance(head, Head)
        and head.weight.device.type == "cpu"
        and head.softcap is None
        and head.weight.dtype in (torch.float32, torch.float64)
        and (head.bias is None or head.bias.dtype == head.weight.dtype)
        and not torch.is_autocast_enabled(head.weight.device.type)
    )


@dataclass(frozen=True)
class BlockedHead:
    """logits = factor · (h Wᵀ + b), one block at a time."""

    weight: Tensor
    bias: Tensor | None
    factor: float
    has_impossible: bool
    """Whether a bias is −∞."""

    @classmethod
    def of(cls, head: Head, temperature: float = 1.0) -> "BlockedHead":
        """The head whose logits are divided by `temperature`."""
        bias = None if head.bias is None else head.bias.detach()
        has_impossible = bias is not None and bool((bias == -torch.inf).any())
        return cls(head.weight.detach(), bias, head.scale / temperature, has_impossible)

    def scaled(self, hidden_nD: Tensor) -> Tensor:
        """factor · h in the weight's dtype."""
        hidden_nD = hidden_nD.to(self.weight.dtype)
        return hidden_nD if self.factor == 1.0 else hidden_nD * self.factor

    def product(self, scaled_nD: Tensor, block: Block, out_pnw: Tensor) -> None:
        """factor · h Wᵀ of the block, without the bias."""
        weight_pDw = block.entries(self.weight).mT
        torch.bmm(scaled_nD.expand(block.pieces, *scaled_nD.shape), weight_pDw, out=out_pnw)

    def add_bias(self, logits_pnw: Tensor, block: Block) -> None:
        """Add factor · b of the block."""
        if self.bias is not None:
            logits_pnw.add_(block.entries(self.bias).unsqueeze(1), alpha=self.factor)

    def logits(self, scaled_nD: Tensor, block: Block, out_pnw: Tensor) -> None:
        """factor · (h Wᵀ + b) of the block."""
        self.product(scaled_nD, block, out_pnw)
        self.add_bias(out_pnw, block)


class BlockedChunk(ABC):
    """A chunk of positions on its way through the blocks: `measure` each, `conclude`, `differentiate` each."""

    value_n: Tensor
    """The losses."""
    stats: Any
    """What was measured beside them, if anything."""

    def __init__(
        self, head: BlockedHead, sums: GradientSums, span: slice, weights_N: Tensor, workspace: Workspace
    ) -> None:
        self.head, self.sums, self.span, self.workspace = head, sums, span, workspace
        hidden_nD = sums.inputs[span]
        self.rows = hidden_nD.shape[0]
        self.weights_n = weights_N[span].to(head.weight.dtype)
        self.hidden_nD = hidden_nD.detach().to(head.weight.dtype)
        pieces = workspace.blocks[0].pieces
        if pieces * self.hidden_nD.numel() * self.hidden_nD.element_size() > MAX_SUM_BYTES:
            pieces = 1
        self._gradient_pnD = self.hidden_nD.new_zeros((pieces if sums.hidden is not None else 0, *hidden_nD.shape))

    @abstractmethod
    def measure(self, number: int, block: Block) -> None:
        """Make the logits of block `number` and add up what the loss needs of them."""

    @abstractmethod
    def conclude(self) -> bool:
        """The losses from the sums over all blocks. False if a position is not finite."""

    @abstractmethod
    def differentiate(self, number: int, block: Block) -> None:
        """The gradients of block `number` that had to wait for the sums."""

    @abstractmethod
    def finish(self) -> None:
        """What is left to do when all blocks are differentiated."""

    def add_to_hidden(self, gradient_pnw: Tensor, block: Block) -> None:
        """Take the gradient to the block's logits on to the hidden states, still to be scaled row by row."""
        weight_pwD = block.entries(self.head.weight)
        if self.sums.hidden is None:
            return
        if block.pieces <= self._gradient_pnD.shape[0]:
            self._gradient_pnD[: block.pieces].baddbmm_(gradient_pnw, weight_pwD)
            return
        for gradient_nw, weight_wD in zip(gradient_pnw, weight_pwD, strict=True):
            self._gradient_pnD[0].addmm_(gradient_nw, weight_wD)

    def rescale_hidden(self, factor_n: Tensor) -> None:
        """Multiply what `add_to_hidden` got so far, row by row."""
        self._gradient_pnD.mul_(factor_n.unsqueeze(-1))

    def add_to_head(self, gradient_pnw: Tensor, block: Block, scale_n: Tensor) -> None:
        """Take the gradient to the block's logits, each row times its scale, on to weight and bias."""
        if self.sums.weight is not None:
            scaled_nD = self.hidden_nD * scale_n.unsqueeze(-1)
            factors = gradient_pnw.mT, scaled_nD.expand(block.pieces, *scaled_nD.shape)
            if self.sums.weight_holds_sum:
                block.entries(self.sums.weight).baddbmm_(*factors)
            else:
                torch.bmm(*factors, out=block.entries(self.sums.weight))
        if self.sums.bias is not None:
            block.entries(self.sums.bias).add_(scale_n @ gradient_pnw)

    def set_hidden(self, scale_n: Tensor) -> None:
        """The chunk's gradient to the hidden states is what `add_to_hidden` got, each row times its scale."""
        if self.sums.hidden is not None:
            self.sums.hidden[self.span] = self._gradient_pnD.sum(0).mul_(scale_n.unsqueeze(-1))


def go_through(chunks: Iterable[BlockedChunk], blocks: list[Block]) -> Iterator[tuple[BlockedChunk, bool]]:
    """Take chunk after chunk through the blocks; yields each with its verdict once it is concluded.

    The gradients of a chunk are formed in the same pass as the logits of the next one, which take their place in
    memory block by block: the weights are read once for both. A chunk that is not concluded gives no gradient.
    """
    before: BlockedChunk | None = None
    for chunk in chain(chunks, [None]):
        for number, block in enumerate(blocks):
            if before is not None:
                before.differentiate(number, block)
            if chunk is not None:
                chunk.measure(number, block)
        if before is not None:
            before.sums.weight_holds_sum = True
            before.finish()
        if chunk is not None:
            concluded = chunk.conclude()
            yield chunk, concluded
            before = chunk if concluded and chunk.sums.any else None


class TokenPlaces:
    """In which block, and where in its tile, the token of each row is."""

    def __init__(self, tokens_n: Tensor, blocks: list[Block]) -> None:
        self._row_n = tokens_n.argsort()
        self._token_n = tokens_n[self._row_n]
        stops = torch.tensor([block.stop for block in blocks], device=tokens_n.device)
        self._end = [int(end) for end in torch.searchsorted(self._token_n, stops).cpu()]

    def inside(self, number: int, block: Block) -> tuple[Tensor, Tensor, Tensor]:
        """Piece, row and column of the tokens in block `number`; often there are none."""
        those = slice(self._end[number - 1] if number else 0, self._end[number])
        entry = self._token_n[those] - block.start
        width = (block.stop - block.start) // block.pieces
        return entry // width, self._row_n[those], entry % width

    def any_inside(self, number: int) -> bool:
        """Whether a token is in block `number`."""
        return self._end[number] > (self._end[number - 1] if number else 0)
