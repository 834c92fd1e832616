"""A model in memory as a provider of Inspect's: requests that come at the same time are answered in one batch.

Imported only where the package `inspect_ai` is installed (`inspect_tasks.py`).
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import anyio
import anyio.to_thread
from inspect_ai.model import (  # pyright: ignore[reportMissingImports]
    ChatMessage,
    GenerateConfig,
    ModelAPI,
    ModelOutput,
    ModelUsage,
    modelapi,
)
from inspect_ai.tool import ToolChoice, ToolInfo  # pyright: ignore[reportMissingImports]
from torch import nn

from tutelage.data.chat_template import ChatTemplate
from tutelage.data.conversations import Message
from tutelage.errors import ConfigError, TutelageError
from tutelage.evaluation.third_party import cut_at, ends_with_one_of
from tutelage.monitoring.prompts import answer_text, check_fits, padding_id
from tutelage.rollouts import generate, rollout_seed


@dataclass
class _Request:
    ids: list[int]
    seed: int
    options: tuple[int, float, float, tuple[str, ...]]
    answered: anyio.Event = field(default_factory=anyio.Event)
    response: list[int] = field(default_factory=list)


class InMemoryModel(ModelAPI):
    """Answers by `tutelage.rollouts.generate`.

    While a batch is computed, in a thread, the other samples' requests gather; they are the next one. Nothing waits
    for a time, and no answer depends on who it shares a batch with. `failure` is the first error of this project's
    own: Inspect makes a text of it.
    """

    def __init__(self, model: nn.Module, template: ChatTemplate, batch_size: int, seed: int) -> None:
        super().__init__("in-memory")
        self.model = model
        self.template = template
        self.batch_size = batch_size
        self.seed = seed
        self.failure: Exception | None = None
        self.batches: list[int] = []
        self._asked: Counter[tuple[int, ...]] = Counter()
        self._waiting: list[_Request] = []
        self._busy = False

    def max_connections(self) -> int:
        return self.batch_size

    async def generate(
        self, input: list[ChatMessage], tools: list[ToolInfo], tool_choice: ToolChoice, config: GenerateConfig
    ) -> ModelOutput:
        try:
            request = self._request(input, tools, config)
            self._waiting.append(request)
            if not self._busy:
                await self._answer_all()
            await request.answered.wait()
            if not request.response:
                raise self.failure or RuntimeError("the batch of this request was not computed")
        except Exception as error:
            self.failure = self.failure or error
            raise
        return self._output(request)

    async def _answer_all(self) -> None:
        """Batch after batch until nobody waits; every request is released, also when a batch fails."""
        self._busy = True
        try:
            while self._waiting:
                batch = [request for request in self._waiting if request.options == self._waiting[0].options]
                batch = batch[: self.batch_size]
                self._waiting = [request for request in self._waiting if request not in batch]
                try:
                    await anyio.to_thread.run_sync(self._compute, batch)
                finally:
                    for request in batch:
                        request.answered.set()
        finally:
            self._busy = False

    def _compute(self, batch: Sequence[_Request]) -> None:
        max_new_tokens, temperature, top_p, until = batch[0].options
        self.batches.append(len(batch))
        responses = generate(
            self.model,
            [request.ids for request in batch],
            pad_token_id=padding_id(self.template),
            stop_ids=self.template.end_of_turn_ids,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            seeds=[request.seed for request in batch],
            batch_size=self.batch_size,
            stop_when=ends_with_one_of(self.template.tokenizer, until),
        )
        for request, response in zip(batch, responses, strict=True):
            request.response = response

    def _request(self, messages: list[ChatMessage], tools: list[ToolInfo], config: GenerateConfig) -> _Request:
        if tools:
            raise ConfigError(
                f"inspect: the task offers the tool '{tools[0].name}', which a chat template of plain turns cannot "
                "show; run a task without tools"
            )
        turns = tuple(Message(message.role, message.text) for message in messages)
        ids = self.template.encode_prompt(turns, "inspect")
        limit = int(config.max_tokens or 0)
        check_fits(self.model, len(ids) + limit, f"inspect: {turns[-1].content[-60:]!r}")
        # The same prompt may be asked again (epochs): how often it was is the only thing that tells them apart.
        number = self._asked[tuple(ids)]
        self._asked[tuple(ids)] += 1
        until = tuple(text for text in config.stop_seqs or () if text)
        top_p = 1.0 if config.top_p is None else config.top_p
        options = (limit, float(config.temperature or 0.0), top_p, until)
        return _Request(ids, rollout_seed(self.seed, number, *ids), options)

    def _output(self, request: _Request) -> ModelOutput:
        until = request.options[-1]
        text = answer_text(self.template, request.response)
        content = cut_at(text, until)
        ended = request.response[-1] in self.template.end_of_turn_ids or content != text
        output: Any = ModelOutput.from_content(self.model_name, content, "stop" if ended else "max_tokens")
        read, written = len(request.ids), len(request.response)
        output.usage = ModelUsage(input_tokens=read, output_tokens=written, total_tokens=read + written)
        return output

    def own_failure(self) -> TutelageError | None:
        """The sentence a user can mend, where there is one."""
        return self.failure if isinstance(self.failure, TutelageError) else None


in_memory_model: Any = modelapi("tutelage")(InMemoryModel)
"""Makes one: Inspect asks its registry for the name under which a model is logged."""
