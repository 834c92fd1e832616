"""The divergences over the full vocabulary, from blocks of it.

A tile has the student's logits S and, below them, their differences D = S − T from the teacher's. With
c = log Z_S − log Z_T the log ratio of student p to teacher q is D − c. Where the two share a head, D is the product
with the difference of their hidden states: small differences do not drown in the rounding of two logits.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from tutelage.losses.exponential_sums import (
    ExponentialSums,
    exponentials_,
    exponentiate_,
    rescaled_,
    row_maxima,
    row_sums,
)
from tutelage.losses.gradient_sums import GradientSums
from tutelage.losses.per_position import Divergence, mixture_log_ratios
from tutelage.losses.statistics import DivergenceStats
from tutelage.losses.vocabulary_blocks import Block, BlockedChunk, BlockedHead, TokenPlaces, Workspace


@dataclass(frozen=True)
class BlockedTeacher:
    """The constant side."""

    hidden: Tensor
    """[N, D]."""
    head: BlockedHead | None
    """None if it is the student's."""


class BlockedDivergence(BlockedChunk):
    """A chunk's teacher, weights, and tokens if statistics are wanted, which are those of temperature 1.

    Results: `value_n`, `stats`. The workspace has tiles of twice the chunk's rows, and `SPARE_TILES` of its rows.
    The head divides by the temperature of the loss; where that is not 1, statistics have sums of their own.
    """

    SPARE_TILES = 3

    value_n: Tensor
    stats: DivergenceStats | None = None

    def __init__(
        self,
        head: BlockedHead,
        sums: GradientSums,
        span: slice,
        teacher: BlockedTeacher,
        tokens_N: Tensor | None,
        weights_N: Tensor,
        spec: Divergence,
        workspace: Workspace,
    ) -> None:
        super().__init__(head, sums, span, weights_N, workspace)
        self.spec = spec
        self._teacher_head = teacher.head or head
        self._student_nD = head.scaled(self.hidden_nD)
        self._teacher_nD = self._teacher_head.scaled(teacher.hidden[span].detach())
        self._both_mD: Tensor | None = None
        if teacher.head is None:
            self._both_mD = torch.cat([self._student_nD, self._student_nD - self._teacher_nD])
        self._has_impossible = head.has_impossible or self._teacher_head.has_impossible
        self._student, self._teacher = ExponentialSums(), ExponentialSums()
        self._measured = (self._student, self._teacher)
        self._own_sums = tokens_N is not None and spec.temperature != 1.0
        if self._own_sums:
            self._measured = (ExponentialSums(), ExponentialSums())
        self._places = None if tokens_N is None else TokenPlaces(tokens_N[span], workspace.blocks)
        self._token_logits_2n = self._student_nD.new_zeros((2, self.rows))

    @staticmethod
    def keeps_tiles(spec: Divergence, *, with_gradient: bool) -> bool:
        """Whether tiles are needed again when all are made."""
        return with_gradient or spec.kind == "jsd"

    def _halves(self, block: Block) -> tuple[Tensor, Tensor]:
        tile_pmw = self.workspace.tile(block, 2 * self.rows)
        return tile_pmw[:, : self.rows], tile_pmw[:, self.rows :]

    def measure(self, number: int, block: Block) -> None:
        student_pnw, _ = self._halves(block)
        teacher_pnw, *_ = self.workspace.spare_tiles(block, self.rows, self.SPARE_TILES)
        self._make_logits(block, teacher_pnw)
        if self._places is not None and self._places.any_inside(number):
            place = self._places.inside(number, block)
            self._token_logits_2n[0, place[1]] = student_pnw[place]
            self._token_logits_2n[1, place[1]] = teacher_pnw[place]
        # Maxima are two more passes over the tiles, for what hardly ever happens: the sums tell it too.
        if number == 0:
            self._meet(student_pnw, teacher_pnw)
        else:
            for sums in self._all_sums():
                sums.stay()
        self._add_up(block)
        if any(sums.was_too_low() for sums in self._all_sums()):
            for sums in self._all_sums():
                sums.forget_block()
            self._make_logits(block, teacher_pnw)
            self._meet(student_pnw, teacher_pnw)
            self._add_up(block)

    def _all_sums(self) -> list[ExponentialSums]:
        return [self._student, self._teacher, *(self._measured if self._own_sums else ())]

    def _meet(self, student_pnw: Tensor, teacher_pnw: Tensor) -> None:
        for number, logits_pnw in enumerate((student_pnw, teacher_pnw)):
            largest_n = row_maxima(logits_pnw)
            (self._student, self._teacher)[number].meet(largest_n)
            if self._own_sums:
                self._measured[number].meet(largest_n * self.spec.temperature)

    def _add_up(self, block: Block) -> None:
        student_pnw, gap_pnw = self._halves(block)
        teacher_pnw, spare_pnw, _ = self.workspace.spare_tiles(block, self.rows, self.SPARE_TILES)
        if self._own_sums:
            self._measure_at_temperature_1(block)
        measured, kind = self._places is not None and not self._own_sums, self.spec.kind
        student_pnw.sub_(self._student.reference_n.unsqueeze(-1))
        teacher_pnw.sub_(self._teacher.reference_n.unsqueeze(-1))
        self._exponentiate(self._teacher, teacher_pnw, spare_pnw if measured else None)
        if measured or kind == "forward_kl":
            self._teacher.add(torch.mul(teacher_pnw, gap_pnw, out=spare_pnw), "gap")
        if kind == "jsd":
            # Its gradient is found from the logits, when c is known: only their sums are taken here.
            student_pnw = teacher_pnw.copy_(student_pnw)
        self._exponentiate(self._student, student_pnw, spare_pnw if measured else None)
        if kind == "reverse_kl":
            self._student.add(gap_pnw.mul_(student_pnw), "gap")
        elif measured:
            self._student.add(torch.mul(student_pnw, gap_pnw, out=spare_pnw), "gap")
        if kind == "forward_kl":
            gap_pnw.copy_(teacher_pnw)

    def _measure_at_temperature_1(self, block: Block) -> None:
        """What the statistics need of the block, whose logits are those of the loss; they stay as they are."""
        student_pnw, gap_pnw = self._halves(block)
        teacher_pnw, *spare = self.workspace.spare_tiles(block, self.rows, self.SPARE_TILES)
        for sums, logits_pnw in zip(self._measured, (student_pnw, teacher_pnw), strict=True):
            logits_pnw = torch.mul(logits_pnw, self.spec.temperature, out=spare[0])
            self._exponentiate(sums, logits_pnw.sub_(sums.reference_n.unsqueeze(-1)), spare[1])
            sums.add(logits_pnw.mul_(gap_pnw), "gap")

    def _exponentiate(self, sums: ExponentialSums, logits_pnw: Tensor, spare_pnw: Tensor | None) -> None:
        exponentiate_(sums, logits_pnw, spare_pnw, has_impossible=self._has_impossible)

    def _make_logits(self, block: Block, teacher_pnw: Tensor) -> None:
        """S and D in the tile, T = S − D in `teacher_pnw`."""
        student_pnw, gap_pnw = self._halves(block)
        if self._both_mD is not None:
            self.head.product(self._both_mD, block, self.workspace.tile(block, 2 * self.rows))
            self.head.add_bias(student_pnw, block)
            torch.sub(student_pnw, gap_pnw, out=teacher_pnw)
        else:
            self.head.logits(self._student_nD, block, student_pnw)
            self._teacher_head.logits(self._teacher_nD, block, teacher_pnw)
            torch.sub(student_pnw, teacher_pnw, out=gap_pnw)
            if self._has_impossible:  # what is so on both sides is no difference; NaN of other origin is in S or T too
                gap_pnw.nan_to_num_(0.0, torch.inf, -torch.inf)

    def conclude(self) -> bool:
        student_n, teacher_n = self._student.total(), self._teacher.total()
        log_ratio_n = _log_ratio(self._student, self._teacher)
        scale_n = self.head.factor * self.weights_n / student_n
        if self.spec.kind == "reverse_kl":
            mean_gap_n = self._student.mean("gap")
            self.value_n, self._share_n, self._scale_n = mean_gap_n - log_ratio_n, mean_gap_n, scale_n
        elif self.spec.kind == "forward_kl":
            self.value_n = log_ratio_n - self._teacher.mean("gap")
            self._share_n, self._scale_n = student_n / teacher_n, scale_n
        else:
            teacher_value_n, student_value_n = self._mixture_values(log_ratio_n, student_n)
            beta = self.spec.beta
            self.value_n = beta * teacher_value_n + (1.0 - beta) * student_value_n
            self._share_n, self._scale_n = student_value_n, (1.0 - beta) * scale_n
        finite_n = self.value_n.isfinite()
        if self._places is not None:
            self.stats = self._statistics()
            for measure_n in self.stats:
                finite_n &= measure_n.isfinite()
        return bool(finite_n.all())

    def _statistics(self) -> DivergenceStats:
        student, teacher = self._measured
        log_ratio_n, temperature = _log_ratio(student, teacher), self.spec.temperature
        return DivergenceStats(
            reverse_kl=temperature * student.mean("gap") - log_ratio_n,
            forward_kl=log_ratio_n - temperature * teacher.mean("gap"),
            student_entropy=student.entropy(),
            teacher_entropy=teacher.entropy(),
            student_logp=temperature * self._token_logits_2n[0] - student.log_total(),
            teacher_logp=temperature * self._token_logits_2n[1] - teacher.log_total(),
        )

    def _mixture_values(self, log_ratio_n: Tensor, student_n: Tensor) -> tuple[Tensor, Tensor]:
        """Σ q (log q − log m) and Σ p (log p − log m); tiles then have exp S and exp S · (log p − log m)."""
        teacher_values: list[Tensor] = []
        student_values: list[Tensor] = []
        for number, block in enumerate(self.workspace.blocks):
            student_pnw, gap_pnw = self._halves(block)
            teacher_pnw, *_ = self.workspace.spare_tiles(block, self.rows, self.SPARE_TILES)
            fall_n = self._student.fall(number)
            if fall_n is not None:
                student_pnw.add_(fall_n.unsqueeze(-1))
            gap_pnw.neg_().add_(log_ratio_n.unsqueeze(-1))
            exponentials_(torch.add(student_pnw, gap_pnw, out=teacher_pnw))
            teacher_ratio_pnw, student_ratio_pnw = mixture_log_ratios(gap_pnw, self.spec.beta)
            teacher_values.append(row_sums(teacher_ratio_pnw.mul_(teacher_pnw)))
            exponentials_(student_pnw)
            student_values.append(row_sums(torch.mul(student_ratio_pnw, student_pnw, out=gap_pnw)))
        return torch.stack(teacher_values).sum(0) / student_n, torch.stack(student_values).sum(0) / student_n

    def differentiate(self, number: int, block: Block) -> None:
        """The gradients to the logits, up to a factor for each row.

        reverse KL and jsd: e^S · (r − mean of r) with r = D, r = log p − log m; forward KL: e^S − e^T · Z_S / Z_T.
        """
        student_pnw, other_pnw = self._halves(block)
        self._take_up(number, student_pnw, other_pnw)
        share_n1 = self._share_n.unsqueeze(-1)
        if self.spec.kind == "forward_kl":
            gradient_pnw = student_pnw.addcmul_(other_pnw, share_n1, value=-1)
        else:
            gradient_pnw = other_pnw.addcmul_(student_pnw, share_n1, value=-1)
        self.add_to_hidden(gradient_pnw, block)
        self.add_to_head(gradient_pnw, block, self._scale_n)

    def _take_up(self, number: int, student_pnw: Tensor, other_pnw: Tensor) -> None:
        """Make tiles relative to the last references, if these have risen since; those of jsd are already."""
        student_n, teacher_n = self._student.fall(number), self._teacher.fall(number)
        if student_n is not None and self.spec.kind != "jsd":
            rescaled_(student_pnw, student_n.exp())
        if student_n is not None and self.spec.kind == "reverse_kl":
            other_pnw.mul_(student_n.exp().unsqueeze(-1)).masked_fill_(student_pnw == 0, 0.0)
        if teacher_n is not None and self.spec.kind == "forward_kl":
            rescaled_(other_pnw, teacher_n.exp())

    def finish(self) -> None:
        self.set_hidden(self._scale_n)


def _log_ratio(student: ExponentialSums, teacher: ExponentialSums) -> Tensor:
    """log Z_S − log Z_T, [n]; exactly 0 where student and teacher are equal."""
    return (student.reference_n - teacher.reference_n) + (student.total() / teacher.total()).log()
