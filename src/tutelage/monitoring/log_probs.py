"""How probable the model finds the answers of named files. Not here: choosing between answers (`evaluation`)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from tutelage.data.chat_template import ChatTemplate
from tutelage.data.conversations import read_conversations
from tutelage.models import response_log_probs
from tutelage.models.scoring import Pair
from tutelage.monitoring.isolation import leaving_no_trace
from tutelage.monitoring.prompts import check_fits


@dataclass(frozen=True)
class AnswerSet:
    """The last answers of a file of conversations as token ids, ready to be scored again and again.

    pairs: prompt ids and answer ids, the end-of-turn token included; places: file and line of each.
    """

    name: str
    pairs: Sequence[Pair]
    places: Sequence[str]
    template: ChatTemplate

    @classmethod
    def read(cls, name: str, path: Path, template: ChatTemplate, model: nn.Module) -> "AnswerSet":
        """Raises DataError for a missing, empty or faulty file, and for a row longer than the model's positions."""
        pairs: list[Pair] = []
        places: list[str] = []
        for conversation in read_conversations(path):
            place = conversation.place
            prompt = template.encode_prompt(conversation.prompt, place)
            answer = template.encode_response(conversation.messages, place)
            check_fits(model, len(prompt) + len(answer), place)
            pairs.append((prompt, answer))
            places.append(place)
        return cls(name, pairs, places, template)

    def score(self, model: nn.Module, batch_size: int = 8) -> "AnswerScores":
        """Log-probability of every answer token given all before it, in nats."""
        with leaving_no_trace(model):
            return AnswerScores(self, response_log_probs(model, self.pairs, batch_size))


@dataclass(frozen=True)
class AnswerScores:
    """log_probs: one tensor [len(answer)] a row, in the order of the file, in nats."""

    answers: AnswerSet
    log_probs: Sequence[Tensor]

    @property
    def per_token(self) -> float:
        """Sum over all answer tokens of the file divided by their number."""
        return sum(float(row.double().sum()) for row in self.log_probs) / sum(map(len, self.log_probs))

    @property
    def per_answer(self) -> float:
        """Mean over the rows of log p(answer | prompt)."""
        return sum(float(row.double().sum()) for row in self.log_probs) / len(self.log_probs)

    def values(self) -> dict[str, float]:
        """`logp/<name>` (per token) and `logp_per_answer/<name>`."""
        name = self.answers.name
        return {f"logp/{name}": self.per_token, f"logp_per_answer/{name}": self.per_answer}

    def rows(self) -> list[dict[str, object]]:
        """One row an answer with its tokens as text and their log-probabilities."""
        decode = self.answers.template.tokenizer.decode
        return [
            {
                "dataset": self.answers.name,
                "place": place,
                "tokens": [str(decode([token])) for token in answer],
                "log_probs": [round(value, 6) for value in log_probs.tolist()],
            }
            for place, (_, answer), log_probs in zip(
                self.answers.places, self.answers.pairs, self.log_probs, strict=True
            )
        ]
