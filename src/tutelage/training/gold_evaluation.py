"""Evaluation on the gold answers of the test file, the same for every objective that learns from conversations."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader

from tutelage.losses import TokenStats
from tutelage.models import inference_mode_of
from tutelage.training.metrics import MetricSums
from tutelage.training.run_trainer import RunTrainer
from tutelage.training.shares import FilledRows
from tutelage.training.token_loss import token_loss_sum


class GoldAnswerTrainer(RunTrainer):
    """A trainer whose test file holds gold answers, as token rows."""

    def __init__(self, *, eval_collate: Callable[..., dict[str, Any]], **arguments: Any) -> None:
        self.eval_collate = eval_collate
        super().__init__(**arguments)

    def token_loss_sum(self, model: Any, inputs: Mapping[str, Any]) -> tuple[Tensor, TokenStats]:
        """Σ of the token loss on given answers: dft's own for dft, else the NLL."""
        return token_loss_sum(model, inputs, "dft" if self.config.loss == "dft" else "nll")

    def record_tokens(self, stats: TokenStats) -> None:
        """Add NLL, mean probability and accuracy of these positions to the metrics of the step."""
        _add_tokens(self.metrics, "", stats)

    def evaluate_own(self, metrics: MetricSums, prefix: str) -> None:
        """Add what this objective measures on the test file besides the gold answers' tokens."""

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        rows = eval_dataset or self.eval_dataset
        if self.args.world_size > 1:
            rows = FilledRows(rows, self.args.world_size * self.args.eval_batch_size)
        loader: DataLoader[Any] = DataLoader(rows, batch_size=self.args.eval_batch_size, collate_fn=self.eval_collate)
        return self.accelerator.prepare_data_loader(loader)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Token means over the whole test file: not a mean of batch means. `eval_loss` is the objective's loss on
        the gold answers (cross-entropy for sdft, whose own loss needs rollouts); `eval_nll` compares objectives."""
        metrics = MetricSums()
        with inference_mode_of(self.model):
            for loaded in self.get_eval_dataloader(eval_dataset):
                batch: Any = self._prepare_input(loaded)  # TRL samples in `_prepare_inputs`
                loss_sum, stats = self.token_loss_sum(self.model, batch)
                metrics.add(f"{metric_key_prefix}_loss", loss_sum, stats.nll.numel())
                _add_tokens(metrics, f"{metric_key_prefix}_", stats)
            self.evaluate_own(metrics, metric_key_prefix)
            means = metrics.pop_means(self.accelerator)
            self.log(means)  # in evaluation mode, by which TRL's trainers tell their metrics apart
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, means)
        return means


def _add_tokens(metrics: MetricSums, prefix: str, stats: TokenStats) -> None:
    count = stats.nll.numel()
    metrics.add(f"{prefix}nll", stats.nll.sum(), count)
    metrics.add(f"{prefix}mean_token_probability", stats.probability.sum(), count)
    metrics.add(f"{prefix}token_accuracy", stats.correct.sum(), count)
