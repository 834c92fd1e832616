"""The divergences over the full vocabulary, from blocks of it.

A tile has the student's logits S and, below them, their differences D = S − T from the teacher's. With
c = log Z_S − log Z_T the log ratio of student p to teacher q is D − c. Where the two share a head, D is the product
with the difference of their hidden states: small differences do not drown in the rounding of two logits.
"""

from collections import defaultdict
from dataclasses import dataclass

import torch
from torch import Tensor

from tutelage.losses.gradient_sums import GradientSums
from tutelage.losses.per_position import Divergence, mixture_log_ratios
from tutelage.losses.statistics import DivergenceStats
from tutelage.losses.vocabulary_blocks import (
    LARGEST_SUM,
    Block,
    BlockedChunk,
    BlockedHead,
    TokenPlaces,
    Workspace,
    exponentials_,
    row_maxima,
    row_sums,
    summed,
)


@dataclass(frozen=True)
class BlockedTeacher:
    """The constant side."""

    hidden: Tensor
    """[N, D]."""
    head: BlockedHead | None
    """None if it is the student's."""


class BlockedDivergence(BlockedChunk):
    """A chunk's teacher, weights, and tokens if statistics are wanted, which are those of temperature 1.

    Results: `value_n`, `stats`. The workspace has tiles of twice the chunk's rows, and two spare ones of its rows.
    """

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
        super().__init__(head, sums, span, workspace)
        self.weights_n = weights_N[span].to(head.weight.dtype)
        self.spec = spec
        self._teacher_head = teacher.head or head
        self._student_nD = head.scaled(self.hidden_nD)
        self._teacher_nD = self._teacher_head.scaled(teacher.hidden[span].detach())
        self._both_mD: Tensor | None = None
        if teacher.head is None:
            self._both_mD = torch.cat([self._student_nD, self._student_nD - self._teacher_nD])
        self._totals: defaultdict[str, list[Tensor]] = defaultdict(list)
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
        student_pnw, gap_pnw = self._halves(block)
        teacher_pnw, spare_pnw = self.workspace.spare_tiles(block, self.rows, 2)
        self._make_logits(block, teacher_pnw)
        if number == 0:
            self._student_reference_n = row_maxima(student_pnw)
            self._teacher_reference_n = row_maxima(teacher_pnw)
        measured, kind = self._places is not None, self.spec.kind
        if self._places is not None and self._places.any_inside(number):
            place = self._places.inside(number, block)
            self._token_logits_2n[0, place[1]] = student_pnw[place]
            self._token_logits_2n[1, place[1]] = teacher_pnw[place]
        student_pnw.sub_(self._student_reference_n.unsqueeze(-1))
        teacher_pnw.sub_(self._teacher_reference_n.unsqueeze(-1))

        self._exponentiate("teacher", teacher_pnw, spare_pnw)
        if measured or kind == "forward_kl":
            self._add("teacher · gap", torch.mul(teacher_pnw, gap_pnw, out=spare_pnw))
        if kind == "jsd":
            # Its gradient is found from the logits, when c is known: only their sums are taken here.
            student_pnw = teacher_pnw.copy_(student_pnw)
        self._exponentiate("student", student_pnw, spare_pnw)
        if kind == "reverse_kl":
            self._add("student · gap", gap_pnw.mul_(student_pnw))
        elif measured:
            self._add("student · gap", torch.mul(student_pnw, gap_pnw, out=spare_pnw))
        if kind == "forward_kl":
            gap_pnw.copy_(teacher_pnw)

    def _make_logits(self, block: Block, teacher_pnw: Tensor) -> None:
        """S and D in the tile, T = S − D in `teacher_pnw`."""
        student_pnw, gap_pnw = self._halves(block)
        if self._both_mD is not None:
            self.head.product(self._both_mD, block, self.workspace.tile(block, 2 * self.rows))
            self.head.add_bias(student_pnw, block)
            torch.sub(student_pnw, gap_pnw, out=teacher_pnw)
        else:
            self.head.product(self._student_nD, block, student_pnw)
            self.head.add_bias(student_pnw, block)
            self._teacher_head.product(self._teacher_nD, block, teacher_pnw)
            self._teacher_head.add_bias(teacher_pnw, block)
            torch.sub(student_pnw, teacher_pnw, out=gap_pnw)

    def _exponentiate(self, name: str, logits_pnw: Tensor, spare_pnw: Tensor) -> None:
        """Exponentials in place and their sum; for the entropy, also the sum of their products with the logits."""
        if self._places is None:
            exponentials_(logits_pnw)
        else:
            exponentials_(spare_pnw.copy_(logits_pnw))
            self._add(name + " · logits", logits_pnw.mul_(spare_pnw))
            logits_pnw.copy_(spare_pnw)
        self._add(name, logits_pnw)

    def _add(self, name: str, tile_pnw: Tensor) -> None:
        self._totals[name].append(row_sums(tile_pnw))

    def conclude(self) -> bool:
        total = {name: summed(parts) for name, parts in self._totals.items()}
        student_n, teacher_n = total["student"], total["teacher"]
        log_student_n = self._student_reference_n + student_n.log()
        log_teacher_n = self._teacher_reference_n + teacher_n.log()
        # Exactly 0 where student and teacher are equal.
        log_ratio_n = (self._student_reference_n - self._teacher_reference_n) + (student_n / teacher_n).log()
        finite_n = (student_n < LARGEST_SUM) & (teacher_n < LARGEST_SUM)
        scale_n = self.head.factor * self.weights_n / student_n

        if self.spec.kind == "reverse_kl":
            mean_gap_n = total["student · gap"] / student_n
            self.value_n, self._share_n, self._scale_n = mean_gap_n - log_ratio_n, mean_gap_n, scale_n
        elif self.spec.kind == "forward_kl":
            self.value_n = log_ratio_n - total["teacher · gap"] / teacher_n
            self._share_n, self._scale_n = student_n / teacher_n, scale_n
        else:
            teacher_value_n, student_value_n = self._mixture_values(log_ratio_n, student_n)
            beta = self.spec.beta
            self.value_n = beta * teacher_value_n + (1.0 - beta) * student_value_n
            self._share_n, self._scale_n = student_value_n, (1.0 - beta) * scale_n
        finite_n &= self.value_n.isfinite()

        if self._places is not None:
            self.stats = DivergenceStats(
                reverse_kl=total["student · gap"] / student_n - log_ratio_n,
                forward_kl=log_ratio_n - total["teacher · gap"] / teacher_n,
                student_entropy=student_n.log() - total["student · logits"] / student_n,
                teacher_entropy=teacher_n.log() - total["teacher · logits"] / teacher_n,
                student_logp=self._token_logits_2n[0] - log_student_n,
                teacher_logp=self._token_logits_2n[1] - log_teacher_n,
            )
            for measure_n in self.stats:
                finite_n &= measure_n.isfinite()
        return bool(finite_n.all())

    def _mixture_values(self, log_ratio_n: Tensor, student_n: Tensor) -> tuple[Tensor, Tensor]:
        """Σ q (log q − log m) and Σ p (log p − log m); tiles then have exp S and exp S · (log p − log m)."""
        teacher_values: list[Tensor] = []
        student_values: list[Tensor] = []
        for block in self.workspace.blocks:
            student_pnw, gap_pnw = self._halves(block)
            teacher_pnw, _ = self.workspace.spare_tiles(block, self.rows, 2)
            gap_pnw.neg_().add_(log_ratio_n.unsqueeze(-1))
            exponentials_(torch.add(student_pnw, gap_pnw, out=teacher_pnw))
            teacher_ratio_pnw, student_ratio_pnw = mixture_log_ratios(gap_pnw, self.spec.beta)
            teacher_values.append(row_sums(teacher_ratio_pnw.mul_(teacher_pnw)))
            exponentials_(student_pnw)
            student_values.append(row_sums(torch.mul(student_ratio_pnw, student_pnw, out=gap_pnw)))
        return summed(teacher_values) / student_n, summed(student_values) / student_n

    def differentiate(self, block: Block) -> None:
        """The gradients to the logits, up to a factor for each row.

        reverse KL and jsd: e^S · (r − mean of r) with r = D, r = log p − log m; forward KL: e^S − e^T · Z_S / Z_T.
        """
        student_pnw, other_pnw = self._halves(block)
        share_n1 = self._share_n.unsqueeze(-1)
        if self.spec.kind == "forward_kl":
            gradient_pnw = student_pnw.addcmul_(other_pnw, share_n1, value=-1)
        else:
            gradient_pnw = other_pnw.addcmul_(student_pnw, share_n1, value=-1)
        self.add_to_hidden(gradient_pnw, block)
        self.add_to_head(gradient_pnw, block, self._scale_n)

    def finish(self) -> None:
        if self.sums.hidden is not None:
            self.sums.hidden[self.span] = self.hidden_gradient(self._scale_n)
