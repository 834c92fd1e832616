"""Texts with named places, such as `{question}`, for other texts. Not here: which places a template must have."""

import re
from collections.abc import Mapping


def fill_placeholders(template: str, texts: Mapping[str, str]) -> str:
    """The template with every `{name}` of `texts` replaced, in one pass: other braces, there and in texts, are safe."""
    names = "|".join(map(re.escape, texts))
    return re.sub(rf"\{{({names})\}}", lambda match: texts[match[1]], template)
