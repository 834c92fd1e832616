"""Everything that is checked before a model is loaded or a file is written: data, tokenizer, template, rows.

Not here: the trainers that read the rows (`build.py`).
"""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

from transformers import PreTrainedTokenizerBase

from tutelage.config import GrpoConfig, Purpose, SdftConfig, TrainingConfig
from tutelage.data.chat_template import ChatTemplate
from tutelage.data.collators import packed_batch, pad_batch
from tutelage.data.conversations import Conversation, ConversationFile
from tutelage.data.packing import Packs, pack_rows
from tutelage.data.preferences import Preference, read_preferences
from tutelage.data.prepare import (
    prepare_distillation_rows,
    prepare_preference_rows,
    prepare_prompt_rows,
    prepare_token_rows,
)
from tutelage.data.rows import DistillationRow, PreferenceRow, PromptRow, TokenRow
from tutelage.data.tally import Prepared
from tutelage.data.token_rows import TokenRows
from tutelage.errors import ConfigError, TutelageError
from tutelage.models import load_tokenizer, resolve_model
from tutelage.training.rewards import Scores

Read = TypeVar("Read")

Batch = dict[str, Any]


@dataclass(frozen=True)
class TrainingInputs:
    """The rows of a run, tokenised. `train_items` are what a batch is made of: token rows, packs of them, or
    rows of the objective's own kind; `collate` makes the batch. `eval_rows` are the test file's gold answers, or its
    preferences; `test_prompts` its prompts and `scores` the reward, for grpo. `source` is where the weights are."""

    source: str
    tokenizer: PreTrainedTokenizerBase
    template: ChatTemplate
    train_items: Sequence[Any]
    collate: Callable[[Sequence[Any]], Batch]
    eval_rows: Sequence[Any] | None
    warnings: list[str]
    test_prompts: Sequence[PromptRow] = ()
    scores: Scores | None = None

    def collate_eval(self, rows: Sequence[TokenRow]) -> Batch:
        """Evaluation is on padded gold answers for every objective."""
        return _with_places(pad_batch(rows, self.pad_token_id), rows)

    @property
    def pad_token_id(self) -> int:
        pad: Any = self.tokenizer.pad_token_id
        return int(pad)

    @property
    def tokens_per_epoch(self) -> int:
        """Tokens of one epoch: whole rows, of a preference both; where rollouts have a length of their own, prompt
        and gold answer (sdft) or the prompt alone (grpo)."""
        if isinstance(self.train_items, Packs | TokenRows):
            return self.train_items.num_tokens
        return sum(_num_tokens(item) for item in self.train_items)


def prepare_inputs(config: TrainingConfig) -> TrainingInputs:
    """Read, check and tokenise. Raises DataError, ConfigError, ModelError; writes nothing but the model cache."""
    if config.objective.purpose is Purpose.PREFERENCE:
        preferences = _read(read_preferences, config)
        return _inputs(config, lambda template: _preference_rows(config, template, *preferences))
    conversations, test = _read(ConversationFile, config)
    try:
        return _inputs(config, lambda template: _conversation_rows(config, template, conversations, test))
    except TutelageError:
        # Rows are checked while they are tokenised; a file that cannot be read is said before anything else.
        for _ in chain(conversations, test or ()):
            pass
        raise


@dataclass(frozen=True)
class _Rows:
    """What becomes of the rows of both files."""

    train: Prepared[Any]
    test: Prepared[Any] | None
    items: Sequence[Any]
    collate: Callable[[Sequence[Any]], Batch]
    test_prompts: Prepared[Any] | None = None
    scores: Scores | None = None


def _read(read: Callable[[Path], Read], config: TrainingConfig) -> tuple[Read, Read | None]:
    return read(config.training_file), read(config.test_file) if config.test_file else None


def _inputs(config: TrainingConfig, prepare: Callable[[ChatTemplate], _Rows]) -> TrainingInputs:
    source = resolve_model(config.model)
    tokenizer = load_tokenizer(source)
    template = ChatTemplate(tokenizer, config.chat_template)
    rows = prepare(template)
    return TrainingInputs(
        source=source,
        tokenizer=tokenizer,
        template=template,
        train_items=rows.items,
        collate=rows.collate,
        eval_rows=rows.test.rows if rows.test else None,
        warnings=[part.warning for part in (rows.test, rows.test_prompts, rows.train) if part and part.warning],
        test_prompts=rows.test_prompts.rows if rows.test_prompts else (),
        scores=rows.scores,
    )


def _conversation_rows(
    config: TrainingConfig,
    template: ChatTemplate,
    conversations: Iterable[Conversation],
    test: Iterable[Conversation] | None,
) -> _Rows:
    def token_rows(conversations: Iterable[Conversation]) -> Prepared[TokenRow]:
        return prepare_token_rows(
            conversations,
            template,
            max_seq_length=config.max_seq_length,
            responses_only=config.train_on_responses_only,
            on_too_long=config.on_too_long,
        )

    objective = config.objective
    lengths: Any = {"max_seq_length": config.max_seq_length, "on_too_long": config.on_too_long}
    test_rows = token_rows(test) if test is not None else None
    if isinstance(objective, SdftConfig):
        distilled = prepare_distillation_rows(
            conversations,
            template,
            demo_template=objective.demo_template,
            max_new_tokens=objective.max_new_tokens,
            **lengths,
        )
        return _Rows(distilled, test_rows, distilled.rows, collate_as_they_are)
    if isinstance(objective, GrpoConfig):
        lengths["max_new_tokens"] = objective.max_completion_length
        columns = list(dict.fromkeys(name for row in chain(conversations, test or ()) for name in row.fields))
        prompts = prepare_prompt_rows(conversations, template, columns=columns, **lengths)
        tested = prepare_prompt_rows(test, template, columns=columns, **lengths) if test is not None else None
        _check_groups(config, objective, len(prompts))
        return _Rows(prompts, test_rows, prompts.rows, collate_as_they_are, tested, Scores(objective))
    rows = token_rows(conversations)
    if config.packs:
        return _Rows(rows, test_rows, pack_rows(rows.rows, config.max_seq_length), collate_packs)
    pad: Any = template.tokenizer.pad_token_id
    return _Rows(rows, test_rows, rows.rows, padding_collator(pad))


def _check_groups(config: TrainingConfig, grpo: GrpoConfig, num_rows: int) -> None:
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    answers = config.per_device_train_batch_size * config.gradient_accumulation_steps * processes
    if answers % grpo.num_generations:
        raise ConfigError(
            f"grpo_num_generations: {grpo.num_generations} does not divide the {answers} answers of a step (batch × "
            "accumulation × processes); make one a multiple of the other"
        )
    if num_rows * grpo.num_generations < answers:
        raise ConfigError(
            f"{config.training_file}: {num_rows} rows fill no step of {answers // grpo.num_generations} prompts; give "
            "more rows, or a smaller batch or accumulation"
        )


def _preference_rows(
    config: TrainingConfig, template: ChatTemplate, preferences: list[Preference], test: list[Preference] | None
) -> _Rows:
    rows, test_rows = (
        prepare_preference_rows(part, template, max_seq_length=config.max_seq_length, on_too_long=config.on_too_long)
        if part is not None
        else None
        for part in (preferences, test)
    )
    assert rows is not None
    return _Rows(rows, test_rows, rows.rows, collate_as_they_are)


def padding_collator(pad_token_id: int) -> Callable[[Sequence[TokenRow]], Batch]:
    """Batches of padded rows."""
    return lambda rows: _with_places(pad_batch(rows, pad_token_id), rows)


def collate_packs(packs: Sequence[Sequence[TokenRow]]) -> Batch:
    """A batch of packs is one sequence in which no row sees another."""
    return _with_places(packed_batch(packs), [row for pack in packs for row in pack])


def collate_as_they_are(rows: Sequence[DistillationRow | PromptRow | PreferenceRow]) -> Batch:
    """Rows as they are: tensors are made once the rollouts exist."""
    return {"rows": list(rows), "places": [row.place for row in rows]}


def _with_places(batch: Batch, rows: Sequence[TokenRow]) -> Batch:
    return batch | {"places": [row.place for row in rows]}


def _num_tokens(item: DistillationRow | PromptRow | PreferenceRow) -> int:
    if isinstance(item, DistillationRow):
        return len(item.prompt_ids) + len(item.gold_ids)
    if isinstance(item, PromptRow):
        return len(item.prompt_ids)
    return 2 * len(item.prompt_ids) + len(item.chosen_ids) + len(item.rejected_ids)
