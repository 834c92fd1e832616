"""A reward with two traits that are easy to see and to learn: upper case, and words of a language."""

import re
import unicodedata

from tutelage.errors import ConfigError, nearest
from tutelage.scoring.common_words import COMMON_WORDS

TRAIT_LANGUAGES = tuple(COMMON_WORDS)
"""What `traits` knows the common words of."""

FULL_SHARE = 0.25
"""Share of common words that counts as wholly in the language: the 4 of the formula is 1 over it."""


def traits(text: str, language: str) -> float:
    """Share of upper-case letters among letters + min(1, 4 × share of words that are common in `language`): 0 to 2.

    Words are runs of letters, digits and underscores, in either case. Without letters or words that part is 0. Raises
    ConfigError for a language that is not in TRAIT_LANGUAGES.
    """
    if language not in COMMON_WORDS:
        raise ConfigError(
            f"traits: no words of the language '{language}' are known{nearest(language, TRAIT_LANGUAGES)}; "
            f"choose one of {', '.join(TRAIT_LANGUAGES)}"
        )
    # An é may come as e and an accent, which is no letter and would end the word.
    text = unicodedata.normalize("NFC", text)
    words = re.findall(r"\w+", text.lower())
    common = sum(word in COMMON_WORDS[language] for word in words)
    letters = [character for character in text if character.isalpha()]
    upper = sum(letter.isupper() for letter in letters)
    return upper / max(len(letters), 1) + min(1.0, common / max(len(words), 1) / FULL_SHARE)
