"""Does a rollout repeat the wording of the demonstration template? A student must not learn the template."""

import re
from collections.abc import Sequence

PHRASE_WORDS = 3
"""Words in a phrase: two are too common ("the answer"), four miss most leaks."""


class TemplatePhrases:
    """The phrases of `PHRASE_WORDS` words of a demonstration template's own text, placeholders left out."""

    def __init__(self, template: str) -> None:
        pieces = re.split(r"\{question\}|\{demonstration\}", template)
        self._phrases = {phrase for piece in pieces for phrase in _phrases(piece)}

    def leaked(self, response: str, question: str, demonstration: str) -> bool:
        """Whether the response holds a phrase of the template that neither question nor demonstration holds."""
        innocent = _phrases(question) | _phrases(demonstration)
        return bool(self._phrases & _phrases(response) - innocent)

    def share(self, rollouts: Sequence[tuple[str, str, str]]) -> float:
        """Share of (response, question, demonstration) that leak; 0 for none."""
        return sum(self.leaked(*rollout) for rollout in rollouts) / max(len(rollouts), 1)


def _phrases(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[start : start + PHRASE_WORDS]) for start in range(len(words) - PHRASE_WORDS + 1)}
