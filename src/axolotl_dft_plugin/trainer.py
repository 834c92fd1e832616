"""Makes one trainer compute the loss: how its batches go there, and what comes back. Torch-free.

Not here: the loss (`loss.py`), when the chunked head is used (`head.py`), what is logged (`metrics.py`), what a config
may say (`config.py`).
"""

from collections.abc import Mapping
from typing import Any

from axolotl_dft_plugin.config import Refused
from axolotl_dft_plugin.head import attach_chunked_head

ROUTER_COEFFICIENTS = ("router_aux_loss_coef", "aux_loss_coef")
"""What the configs of `transformers` call the weight of a router's loss."""


class DFTTraining:
    """The loss of one trainer, as its `compute_loss_func`, and the way its batches take there.

    `transformers` divides the sum of a `compute_loss_func` by nothing itself and passes the number of trained tokens
    of the whole optimizer step: that is what makes accumulation and several processes exact.
    """

    def __init__(self, trainer: Any, *, chunked: bool) -> None:
        self.trainer = trainer
        self._chunked = chunked
        self._compute_loss = trainer.compute_loss
        self._prediction_step = trainer.prediction_step
        self._evaluate = trainer.evaluate
        self._router_coefficient = _router_coefficient(trainer.model)
        self._wants_logits = False
        self._was_asked = False
        self._sums: dict[str, dict[str, Any]] = {}

    def install(self) -> None:
        """Put the loss, and the methods of this class that lead to it, into the trainer."""
        trainer = self.trainer
        trainer.compute_loss_func = self.loss_function
        trainer.compute_loss = self.compute_loss
        trainer.prediction_step = self.prediction_step
        trainer.evaluate = self.evaluate

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """The trainer's own `compute_loss`; where the chunked head is used, told to form the sums in its forward."""
        if "labels" not in inputs:
            return self._without_labels(model, inputs, *args, **kwargs)
        if self._chunked and not self._wants_logits:
            from axolotl_dft_plugin.loss import sums_in_forward

            inputs = {**inputs, "use_cache": False, "head_function": sums_in_forward(inputs["labels"])}
        return self._compute_loss(model, inputs, *args, **kwargs)

    def loss_function(self, outputs: Any, labels: Any, num_items_in_batch: Any = None, **kwargs: Any) -> Any:
        """Σ −sg(p_t)·log p_t over `num_items_in_batch`, the tokens of the whole step, or over its own if unknown."""
        from axolotl_dft_plugin import loss

        self._was_asked = True
        sums = outputs if self._are_sums(outputs) else loss.dense_sums(outputs.logits, labels)
        phase = "train" if self.trainer.model.training else "eval"
        self._sums[phase] = loss.added(self._sums.get(phase, {}), sums)
        tokens = sums["tokens"] if num_items_in_batch is None else num_items_in_batch
        value = loss.per_token(sums["dft_loss"], tokens)
        if self._router_coefficient:
            value = value + self._share_of_step(num_items_in_batch) * self._router_coefficient * outputs.aux_loss
        return value

    def prediction_step(self, model: Any, inputs: Any, prediction_loss_only: bool, *args: Any, **kwargs: Any) -> Any:
        """The trainer's own, without rows that were evaluated before; logits only for those who want them."""
        if prediction_loss_only:
            inputs = self._without_repeated_rows(inputs)
        arguments = self.trainer.args
        self._wants_logits = not prediction_loss_only
        # Callbacks take such steps on one process only: the others must not be waited for.
        arguments.average_tokens_across_devices = False
        try:
            return self._prediction_step(model, inputs, prediction_loss_only, *args, **kwargs)
        finally:
            arguments.average_tokens_across_devices = True
            self._wants_logits = False

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """The trainer's own, with sums of its own: callbacks take single prediction steps between evaluations."""
        self.pop_sums("eval")
        return self._evaluate(*args, **kwargs)

    def pop_sums(self, phase: str) -> dict[str, Any]:
        """The sums since they were last asked for."""
        return self._sums.pop(phase, {})

    def require_own_loss_function(self) -> None:
        """Raises Refused if something has replaced the loss since."""
        if self.trainer.compute_loss_func != self.loss_function:
            raise Refused(_another_loss_function(self.trainer.compute_loss_func))

    def require_that_loss_was_asked_for(self) -> None:
        """Raises Refused where a trainer computes a loss of its own, before its first gradient changes a weight."""
        if not self._was_asked:
            raise Refused(
                f"{type(self.trainer).__name__} computes its own loss and never asked for dft's; remove what brings "
                "this trainer (another plugin, or trainer_cls), or set 'enabled: false' under 'dft:'"
            )

    @staticmethod
    def _are_sums(outputs: Any) -> bool:
        return isinstance(outputs, Mapping) and "dft_loss" in outputs

    def _share_of_step(self, num_items_in_batch: Any) -> float:
        """What a mean over one micro-batch counts in the step: the trainer adds up the micro-batches of accumulation,
        and multiplies by the data-parallel processes a loss that was divided by the tokens of all of them."""
        if not self.trainer.model.training:
            return 1.0
        processes = 1
        if num_items_in_batch is not None:
            accelerator = self.trainer.accelerator
            layout = getattr(accelerator, "parallelism_config", None)
            processes = accelerator.num_processes // (layout.tp_size if layout else 1)
        return 1.0 / (self._accumulation_steps * processes)

    @property
    def _accumulation_steps(self) -> int:
        trainer = self.trainer
        return getattr(trainer, "current_gradient_accumulation_steps", trainer.args.gradient_accumulation_steps)

    def _without_repeated_rows(self, inputs: Any) -> Any:
        """With the labels masked of rows by which accelerate makes the last batches of all processes equally long.

        The processes' batches follow on each other, and the first `remainder` rows of them all are new.
        """
        accelerator = self.trainer.accelerator
        loader = accelerator.gradient_state
        if not (accelerator.even_batches and loader.end_of_dataloader and loader.remainder > 0 and "labels" in inputs):
            return inputs
        labels = inputs["labels"].clone()
        labels[max(0, loader.remainder - accelerator.process_index * len(labels)) :] = -100
        return {**inputs, "labels": labels}

    def _without_labels(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """As if there were no plugin: the model's own loss, a mean over the micro-batches of the step."""
        trainer = self.trainer
        self._was_asked = True
        trainer.compute_loss_func = None
        try:
            result = self._compute_loss(model, inputs, *args, **kwargs)
        finally:
            trainer.compute_loss_func = self.loss_function
        if not trainer.model.training or getattr(trainer, "model_accepts_loss_kwargs", False):
            return result
        # The trainer divides by the micro-batches itself only where there is no `compute_loss_func`.
        steps = self._accumulation_steps
        return (result[0] / steps, *result[1:]) if isinstance(result, tuple) else result / steps


def install(cfg: Mapping[str, Any], trainer: Any) -> None:
    """Train `trainer` with the loss. Raises Refused where that cannot work."""
    if isinstance(getattr(getattr(trainer, "compute_loss_func", None), "__self__", None), DFTTraining):
        return  # both names of the hook were called
    _require_supported(trainer)
    training = DFTTraining(trainer, chunked=attach_chunked_head(cfg, trainer))
    training.install()
    trainer._loss_shifts_labels = True  # this one does: the first token of a row has nothing that predicts it
    _set_arguments(trainer.args)
    from axolotl_dft_plugin.metrics import LogTokenMeans

    trainer.callback_handler.callbacks.insert(0, LogTokenMeans(training))


def _set_arguments(args: Any) -> None:
    """What follows from the loss and its metrics, and no key of Axolotl can say."""
    # Else each process would divide by its own tokens: a mean of means.
    args.average_tokens_across_devices = True
    # `transformers` takes a metric not called "loss" for one that should grow, and Axolotl passes no `false` on.
    if (getattr(args, "metric_for_best_model", None) or "").endswith(("nll", "ppl")):
        args.greater_is_better = False


def _require_supported(trainer: Any) -> None:
    if not hasattr(trainer, "compute_loss_func"):
        raise Refused(
            f"{type(trainer).__name__} knows no compute_loss_func; use Axolotl 0.9.1 or newer, "
            "or set 'enabled: false' under 'dft:'"
        )
    if trainer.compute_loss_func is not None:
        raise Refused(_another_loss_function(trainer.compute_loss_func))
    if getattr(trainer.args, "label_smoothing_factor", 0):
        raise Refused(
            f"label_smoothing_factor {trainer.args.label_smoothing_factor} does not go with dft: the probability of a "
            "smoothed target weights nothing; remove it, or set 'enabled: false' under 'dft:'"
        )
    if getattr(trainer.args, "n_gpu", 1) > 1:
        raise Refused(
            f"one process drives {trainer.args.n_gpu} GPUs, and its token counts would be wrong; "
            "start one process a GPU (--launcher accelerate or torchrun)"
        )


def _router_coefficient(model: Any) -> float:
    """The weight of the router's loss in a mixture of experts that is asked for it, else 0."""
    config = model.config.get_text_config().to_dict()
    if not config.get("output_router_logits"):
        return 0.0
    for name in ROUTER_COEFFICIENTS:
        if name in config:
            return config[name]
    raise Refused(
        f"output_router_logits: {type(model.config).__name__} has no {' or '.join(ROUTER_COEFFICIENTS)} to weight the "
        "router's loss with; set output_router_logits to false, or 'enabled: false' under 'dft:'"
    )


def _another_loss_function(function: Any) -> str:
    name = getattr(function, "__qualname__", None) or getattr(getattr(function, "func", None), "__qualname__", None)
    return (
        f"the trainer has another compute_loss_func already ({name or repr(function)}), and only one can be the loss; "
        "remove what sets it, or set 'enabled: false' under 'dft:'"
    )
