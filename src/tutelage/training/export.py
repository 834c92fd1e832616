"""The trained model as files: merged or as an adapter, with tokenizer, chat template and model card."""

import copy
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from tutelage.config import TrainingConfig
from tutelage.errors import OutputError
from tutelage.events import EventLog, Tag
from tutelage.models import LoadedModel
from tutelage.models.loading import merged_on_cpu
from tutelage.models.sharding import gathered_trainable, is_sharded
from tutelage.training.record import read_record
from tutelage.training.run_trainer import RunTrainer


def export_model(config: TrainingConfig, trainer: RunTrainer, loaded: LoadedModel, run: Path) -> None:
    """Write `model/` (full fine-tuning, or the adapter merged) or `adapter/`; push it only if asked.

    The folder appears by a rename when it is complete. To be called by all processes: of a sharded model each has a
    part. Raises OutputError.
    """
    model: Any = trainer.accelerator.unwrap_model(trainer.model)
    gathered = gathered_trainable(model) if is_sharded(model) else None
    if not trainer.is_world_process_zero():
        return
    merge = not config.is_peft or config.merge_before_push
    target = run / ("model" if merge else "adapter")
    workplace = run / f".{target.name}"
    try:
        if config.is_peft and merge:
            model, gathered = _merged(model, gathered, loaded.source, workplace), None
        # The adapter in training only: dpo and grpo may have a frozen one beside it.
        which = {} if merge else {"selected_adapters": [model.active_adapter]}
        model.save_pretrained(workplace, **which, **({} if gathered is None else {"state_dict": gathered}))
        _save_tokenizer(trainer.processing_class, workplace)
        (workplace / "chat_template.jinja").write_text(_chat_template(config, trainer), encoding="utf-8")
        (workplace / "README.md").write_text(model_card(config, loaded, trainer.events), encoding="utf-8")
        shutil.rmtree(target, ignore_errors=True)
        workplace.rename(target)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(workplace, ignore_errors=True)
        raise OutputError(
            f"{target}: the model could not be written ({error}); free space, then --resume {run} writes it again"
        ) from error
    if config.push_to_hub:
        _push(config, model, trainer)


def _merged(model: Any, gathered: dict[str, Tensor] | None, source: str, workplace: Path) -> Any:
    """In a copy: merging in place and back would leave the run's own weights rounded."""
    if gathered is None:
        return copy.deepcopy(model).merge_and_unload()
    adapter = workplace.with_name(".adapter")
    try:
        model.save_pretrained(adapter, selected_adapters=[model.active_adapter], state_dict=gathered)
        return merged_on_cpu(source, adapter, model.get_base_model().dtype)
    finally:
        shutil.rmtree(adapter, ignore_errors=True)


def model_card(config: TrainingConfig, loaded: LoadedModel, events: EventLog) -> str:
    """Markdown that names data hash, config and metrics."""
    record = read_record(events.path.parent)  # the data as it was when the run began: the file may be gone by now
    metrics: dict[str, Any] = {}
    for event in events.read(Tag.TRAIN, Tag.EVAL, Tag.MONITORING):
        metrics |= event.values
    numbers = "\n".join(
        f"| {name} | {value:.6g} |" for name, value in sorted(metrics.items()) if isinstance(value, int | float)
    )
    data = "\n".join(f"- `{Path(path).name}`: sha256 `{digest}`" for path, digest in record["data"].items())
    options = "\n".join(f"{name}: {value!r}" for name, value in record["config"].items())
    return (
        f"---\nbase_model: {Path(loaded.source).name if Path(loaded.source).exists() else loaded.source}\n"
        f"library_name: {'peft' if config.is_peft and not config.merge_before_push else 'transformers'}\n"
        f"tags: [tutelage, {config.loss}]\n---\n\n"
        f"# Fine-tuned with `{config.loss}`\n\n"
        f"## Data\n{data}\n\n## Last metrics\n| metric | value |\n|---|---|\n{numbers}\n\n"
        f"## Config\n```yaml\n{options}\n```\n"
    )


def _save_tokenizer(tokenizer: Any, folder: Path) -> None:
    try:
        tokenizer.save_pretrained(folder)
    except OSError:
        raise
    except Exception as error:  # all that `tokenizers`, written in Rust, says of a full disk
        raise OSError(str(error)) from error


def _chat_template(config: TrainingConfig, trainer: RunTrainer) -> str:
    from tutelage.data.chat_template import ChatTemplate

    tokenizer: Any = trainer.processing_class
    return ChatTemplate(tokenizer, config.chat_template).source


def _push(config: TrainingConfig, model: Any, trainer: RunTrainer) -> None:
    name = config.finetuned_model_id.format(
        org_id=config.meta.get("org_id", ""),
        model_name=Path(config.model).name,
        job_id="-".join(filter(None, [config.loss, config.job_id_suffix])),
        **config.model_naming_extra_parameters,
    )
    try:
        model.push_to_hub(name, private=config.push_to_private)
        trainer.processing_class.push_to_hub(name, private=config.push_to_private)
    except Exception as error:  # the Hub's client raises many kinds; the model is safe on disk
        raise OutputError(
            f"'{name}' could not be pushed ({error}); the model is in the run's folder, push it from there"
        ) from error
