"""Everything that is checked before a model is loaded or a file is written: data, tokenizer, template, rows."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from tutelage.config import SdftConfig, TrainingConfig
from tutelage.data.chat_template import ChatTemplate
from tutelage.data.collators import packed_batch, pad_batch
from tutelage.data.conversations import read_conversations
from tutelage.data.packing import pack_rows
from tutelage.data.prepare import prepare_distillation_rows, prepare_token_rows
from tutelage.data.rows import DistillationRow, TokenRow
from tutelage.models import load_tokenizer, resolve_model

Batch = dict[str, Any]


@dataclass(frozen=True)
class TrainingInputs:
    """The rows of a run, tokenised. `train_items` are what a batch is made of: token rows, packs of them, or
    distillation rows; `collate` makes the batch. `source` is where the model's weights are."""

    source: str
    tokenizer: PreTrainedTokenizerBase
    template: ChatTemplate
    train_items: Sequence[Any]
    collate: Callable[[Sequence[Any]], Batch]
    eval_rows: list[TokenRow] | None
    warnings: list[str]

    def collate_eval(self, rows: Sequence[TokenRow]) -> Batch:
        """Evaluation is on padded gold answers for every objective."""
        return _with_places(pad_batch(rows, self.pad_token_id), rows)

    @property
    def pad_token_id(self) -> int:
        pad: Any = self.tokenizer.pad_token_id
        return int(pad)

    @property
    def tokens_per_epoch(self) -> int:
        """Tokens of one epoch: whole rows for sft and dft, student prompt and gold answer for sdft (whose
        rollouts have a length of their own)."""
        return sum(_num_tokens(item) for item in self.train_items)


def prepare_inputs(config: TrainingConfig) -> TrainingInputs:
    """Read, check and tokenise. Raises DataError, ConfigError, ModelError; writes nothing but the model cache."""
    conversations = read_conversations(config.training_file)
    test_conversations = read_conversations(config.test_file) if config.test_file else None
    source = resolve_model(config.model)
    tokenizer = load_tokenizer(source)
    template = ChatTemplate(tokenizer, config.chat_template)
    pad: Any = tokenizer.pad_token_id
    warnings: list[str] = []
    eval_rows = None
    if test_conversations is not None:
        prepared_test = prepare_token_rows(
            test_conversations,
            template,
            max_seq_length=config.max_seq_length,
            responses_only=config.train_on_responses_only,
            on_too_long=config.on_too_long,
        )
        eval_rows = prepared_test.rows
        warnings += [prepared_test.warning] if prepared_test.warning else []
    train_items: Sequence[Any]
    collate: Callable[[Sequence[Any]], Batch]
    if isinstance(config.objective, SdftConfig):
        distillation = prepare_distillation_rows(
            conversations,
            template,
            demo_template=config.objective.demo_template,
            max_seq_length=config.max_seq_length,
            max_new_tokens=config.objective.max_new_tokens,
            on_too_long=config.on_too_long,
        )
        train_items, collate = distillation.rows, collate_distillation
        warning = distillation.warning
    else:
        token_rows = prepare_token_rows(
            conversations,
            template,
            max_seq_length=config.max_seq_length,
            responses_only=config.train_on_responses_only,
            on_too_long=config.on_too_long,
        )
        warning = token_rows.warning
        if config.packs:
            train_items, collate = pack_rows(token_rows.rows, config.max_seq_length), collate_packs
        else:
            train_items, collate = token_rows.rows, padding_collator(pad)
    warnings += [warning] if warning else []
    return TrainingInputs(source, tokenizer, template, train_items, collate, eval_rows, warnings)


def padding_collator(pad_token_id: int) -> Callable[[Sequence[TokenRow]], Batch]:
    """Batches of padded rows."""
    return lambda rows: _with_places(pad_batch(rows, pad_token_id), rows)


def collate_packs(packs: Sequence[Sequence[TokenRow]]) -> Batch:
    """A batch of packs is one sequence in which no row sees another."""
    return _with_places(packed_batch(packs), [row for pack in packs for row in pack])


def collate_distillation(rows: Sequence[DistillationRow]) -> Batch:
    """Rows as they are: tensors are made once the rollouts exist."""
    return {"rows": list(rows), "places": [row.place for row in rows]}


def _with_places(batch: Batch, rows: Sequence[TokenRow]) -> Batch:
    return batch | {"places": [row.place for row in rows]}


def _num_tokens(item: Any) -> int:
    if isinstance(item, DistillationRow):
        return len(item.prompt_ids) + len(item.gold_ids)
    if isinstance(item, TokenRow):
        return len(item.input_ids)
    return sum(len(row.input_ids) for row in item)
