"""YAML as people write it, read with care. Not here: what the keys mean."""

import re
from pathlib import Path
from typing import Any, cast

import yaml

from tutelage.errors import ConfigError


class _Yaml(yaml.SafeLoader):
    """YAML as people write it.

    YAML 1.1 reads `1e-4` as text and `no` as false; here they are a number and a word, as in YAML 1.2 (where an
    option is true or false, `no` still means false). A key written twice is an error.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in keys:
                raise yaml.MarkedYAMLError(problem=f"'{key.value}' is written twice", problem_mark=key.start_mark)
            keys.add(str(key.value))
        return cast("dict[Any, Any]", super().construct_mapping(node, deep))


_BOOL, _FLOAT = "tag:yaml.org,2002:bool", "tag:yaml.org,2002:float"
_YAML_1_2: dict[str, str] = {
    _BOOL: r"(true|True|TRUE|false|False|FALSE)$",
    _FLOAT: r"([-+]?(\.\d+|\d+(\.\d*)?)([eE][-+]?\d+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$",
}
_Yaml.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _YAML_1_2]
    + [(tag, re.compile(pattern)) for tag, pattern in _YAML_1_2.items()]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def parse_yaml(text: str) -> Any:
    """The value of a text. Raises yaml.YAMLError."""
    return yaml.load(text, _Yaml)


def read_yaml(path: Path, what: str = "config") -> Any:
    """The value of a file. what: how messages call it. Raises ConfigError."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such {what} file; check the path") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8") from error
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot read the {what} ({error.strerror}); check the path and its rights"
        ) from error
    try:
        return parse_yaml(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "not valid YAML"
        raise ConfigError(f"{path}{line}: {problem}; mend the YAML there") from error
