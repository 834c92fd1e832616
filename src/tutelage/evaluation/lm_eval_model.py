"""A model as lm-evaluation-harness sees one: its requests go through the project's own scoring and sampling.

Imported only where the package `lm_eval` is installed (`lm_eval.py`).
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from torch import nn

from tutelage.data.chat_template import ChatTemplate
from tutelage.errors import DataError
from tutelage.evaluation.third_party import cut_at, ends_with_one_of
from tutelage.models import response_scores
from tutelage.models.scoring import Pair
from tutelage.monitoring.prompts import check_fits, padding_id, positions_of
from tutelage.rollouts import generate, rollout_seed

MAX_NEW_TOKENS = 256
"""For tasks that say nothing; the harness's own default."""

GENERATION_OPTIONS = {"until", "max_gen_toks", "do_sample", "temperature", "top_p"}


class InMemoryLm(TemplateLM):
    """Answers the harness's requests.

    The harness's own `HFLM` is not used: it cuts rows that are too long, leaves the model in evaluation mode and
    samples with the global random state. Here a number of this harness and one of `evaluate_multiple_choice` come
    from the same code, whatever the batch; where a text is divided into context and continuation is the harness's
    way, so that scores compare with published ones.
    """

    def __init__(self, model: nn.Module, template: ChatTemplate, chat: bool, batch_size: int, seed: int) -> None:
        super().__init__()
        self.model = model
        self.template = template
        self.tokenizer: Any = template.tokenizer
        self.chat = chat
        self.batch_size = batch_size
        self.seed = seed

    @property
    def eot_token_id(self) -> int:
        eos = self.tokenizer.eos_token_id
        return int(self.template.end_of_turn_ids[0] if eos is None else eos)

    @property
    def prefix_token_id(self) -> int:
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else int(bos)

    @property
    def tokenizer_name(self) -> str:
        return str(self.tokenizer.name_or_path)

    def chat_template(self, chat_template: bool | str = False) -> str:
        return self.template.source

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return str(
            self.tokenizer.apply_chat_template(
                chat_history,
                chat_template=self.template.source,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        )

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        # A chat template has written all the special tokens there are to be.
        add = not self.chat if add_special_tokens is None else add_special_tokens
        bos = self.tokenizer.bos_token
        if bos and string.startswith(bos):
            add = False
        return list(self.tokenizer(string, add_special_tokens=add, verbose=False)["input_ids"])

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        pairs: list[Pair] = []
        for texts, context, continuation in requests:
            place = f"the request {texts[1][-60:]!r}"
            if not continuation:
                raise DataError(f"{place}: the continuation has no token of its own; let it begin with a space")
            pairs.append((context or [self.prefix_token_id], continuation))
            # The last token is only predicted: it needs no position.
            check_fits(self.model, len(pairs[-1][0]) + len(continuation) - 1, place)
        return self._scored(pairs)

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:
        windows: list[list[Pair]] = []
        for request in requests:
            ids = self.tok_encode(request.args[0])
            size = positions_of(self.model) or len(ids) + 1
            rolling = get_rolling_token_windows(ids, self.prefix_token_id, size, context_len=1)
            windows.append([make_disjoint_window(window) for window in rolling])
        scored = iter(self._scored([pair for row in windows for pair in row]))
        return [sum(next(scored)[0] for _ in row) for row in windows]

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        alike: dict[tuple[Any, ...], list[int]] = defaultdict(list)
        for number, request in enumerate(requests):
            arguments: Any = request.args
            options: dict[str, Any] = dict(normalize_gen_kwargs(arguments[1], MAX_NEW_TOKENS))
            unknown = sorted(set(options) - GENERATION_OPTIONS)
            if unknown:
                raise DataError(
                    f"task '{request.task_name}': generation_kwargs has '{unknown[0]}', which is not supported; "
                    f"use {', '.join(sorted(GENERATION_OPTIONS))}"
                )
            temperature = float(options.get("temperature", 1.0)) if options["do_sample"] else 0.0
            until = tuple(text for text in options["until"] if text)
            key = (until, options["max_gen_toks"], temperature, float(options.get("top_p", 1.0)))
            alike[key].append(number)
        answers = [""] * len(requests)
        for (until, max_new_tokens, temperature, top_p), numbers in alike.items():
            prompts: list[list[int]] = []
            for number in numbers:
                prompts.append(self.tok_encode(requests[number].args[0]) or [self.prefix_token_id])
                place = f"{requests[number].task_name}:{requests[number].doc_id}"
                check_fits(self.model, len(prompts[-1]) + max_new_tokens, place)
            responses = generate(
                self.model,
                prompts,
                pad_token_id=padding_id(self.template),
                stop_ids=self.template.end_of_turn_ids,
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                top_p=top_p,
                seeds=[rollout_seed(self.seed, number) for number in numbers],
                batch_size=self.batch_size,
                stop_when=ends_with_one_of(self.tokenizer, until),
            )
            for number, ids in zip(numbers, responses, strict=True):
                answers[number] = cut_at(str(self.tokenizer.decode(ids, skip_special_tokens=True)), until)
        return answers

    def _scored(self, pairs: list[Pair]) -> list[tuple[float, bool]]:
        return [
            (float(score.log_probs.double().sum()), score.greedy)
            for score in response_scores(self.model, pairs, self.batch_size)
        ]
