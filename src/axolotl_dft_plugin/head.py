"""Whether a trainer's model can form the loss in its forward pass, below the logits; one line in the log says if not.

Torch-free, as far as it runs without a model. Not here: the head itself (`tutelage.models.head`).
"""

import logging
from collections.abc import Mapping
from typing import Any

from axolotl_dft_plugin.config import is_first_process

logger = logging.getLogger("axolotl.dft")  # below Axolotl's own logger, whose handlers print it


def attach_chunked_head(cfg: Mapping[str, Any], trainer: Any) -> bool:
    """Teach the model the argument `head_function`, if it can be had. Has to come before a trainer wraps its model."""
    attached, reason = _attach(cfg, trainer)
    if is_first_process():
        if attached:
            logger.info("dft: the loss is computed through the chunked head; [batch, sequence, vocabulary] is not held")
        elif reason:
            logger.warning("dft: the loss is computed from whole logits, which costs memory: %s", reason)
    return attached


def _attach(cfg: Mapping[str, Any], trainer: Any) -> tuple[bool, str | None]:
    """Whether it could be done, and why not where nobody has said so yet."""
    try:
        from tutelage.models.head import attach_head
    except ImportError as error:
        return False, f"the chunked head needs the package tutelage, torch 2.6 and transformers 5.10 ({error})"
    if reason := _why_dense(cfg, trainer):
        return False, reason
    try:
        # A model with some weights in float32 and some in bfloat16 runs under autocast only.
        with trainer.accelerator.autocast():
            return attach_head(trainer.model), None  # where it finds no head, it says so itself
    except Exception as error:  # whatever a model's forward raises when it is tried with a few tokens
        return False, f"its head could not be tried before training ({type(error).__name__}: {error})"


def _why_dense(cfg: Mapping[str, Any], trainer: Any) -> str | None:
    compute_loss = next(cls for cls in type(trainer).__mro__ if "compute_loss" in vars(cls))
    if compute_loss.__module__ not in ("axolotl.core.trainers.base", "transformers.trainer"):
        return f"{compute_loss.__name__} has a compute_loss of its own"
    if getattr(trainer, "is_fsdp_enabled", False) or cfg.get("fsdp") or cfg.get("fsdp_config"):
        return "FSDP shards the head"
    if _is_zero3():
        return "DeepSpeed ZeRO-3 shards the head"
    if (cfg.get("tensor_parallel_size") or 1) > 1:
        return "tensor parallelism shards the head"
    if cfg.get("torch_compile"):
        return "a loss inside the forward pass would be compiled anew for each batch"
    if cfg.get("is_multimodal"):
        return "the model takes more than text"
    if trainer.args.fp16 or str(trainer.model.dtype) == "torch.float16":
        return "in float16 the gradients it forms before the loss is scaled would round to zero"
    if trainer.model.config.get_text_config().to_dict().get("output_router_logits"):
        return "the model's own forward pass computes the loss of its router (output_router_logits)"
    return None


def _is_zero3() -> bool:
    from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

    return is_deepspeed_zero3_enabled()
