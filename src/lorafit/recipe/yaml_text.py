"""YAML as recipes use it: version 1.2's scalars, no tags, no aliases, no duplicate keys, and line numbers.

PyYAML follows YAML 1.1, where `2e-4` is a string and `no` is false; both would change a run in silence.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

Line = dict[tuple[str, ...], int]

LONGEST = 1 << 20
"""Characters of a recipe; `lorafit init` writes 16,000, the longest chat templates have 30,000."""
DEEPEST = 16
"""Lists and mappings inside each other; recipes go 3 deep."""

# The core schema of YAML 1.2.2, section 10.3.2.
_SCALARS = (
    ("tag:yaml.org,2002:null", re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
    ("tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")),
    ("tag:yaml.org,2002:int", re.compile(r"^[-+]?[0-9]+$"), list("-+0123456789")),
    (
        "tag:yaml.org,2002:float",
        re.compile(
            r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
        ),
        list("-+.0123456789"),
    ),
)


class RecipeYamlError(ValueError):
    """The text is not the YAML of a recipe; `line` counts from 1 (0: unknown)."""

    def __init__(self, message: str, line: int = 0):
        super().__init__(message)
        self.line = line


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, list[Any]] = {}  # noqa: RUF012  (PyYAML's own name: one table a class)

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        line = event.start_mark.line + 1
        if isinstance(event, yaml.AliasEvent):
            raise RecipeYamlError(f"the alias *{event.anchor} is not allowed: write the value out", line)
        starts = (yaml.ScalarEvent, yaml.SequenceStartEvent, yaml.MappingStartEvent)
        if isinstance(event, starts) and event.tag is not None:
            raise RecipeYamlError(f"the tag {event.tag} is not allowed: write the plain value", line)
        self.depth += 1
        if self.depth > DEEPEST:
            raise RecipeYamlError(f"more than {DEEPEST} lists and mappings lie inside each other", line)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


class _Dumper(yaml.SafeDumper):
    """Quotes every string that YAML 1.1 or 1.2 would read as something else."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _tag, _pattern, _first in _SCALARS:
    _Loader.add_implicit_resolver(_tag, _pattern, _first)
    _Dumper.add_implicit_resolver(_tag, _pattern, _first)
# Decimal always: PyYAML's own constructor reads 010 as eight and 1:30 as ninety.
_Loader.add_constructor("tag:yaml.org,2002:int", lambda _loader, node: _whole_number(node))
_Loader.add_constructor(
    "tag:yaml.org,2002:float", lambda _loader, node: float(re.sub(r"\.(?=[a-z])", "", node.value.lower()))
)


def _whole_number(node: Any) -> int:
    try:
        return int(node.value)
    except ValueError:  # Python reads no more than 4,300 digits
        line = node.start_mark.line + 1
        raise RecipeYamlError(f"a number of {len(node.value):,} digits is not allowed", line) from None


def parse(text: str) -> tuple[Any, Line]:
    """Read one YAML document.

    Args:
        text: the document.

    Returns:
        The value, of plain dicts, lists and scalars; and the line of each key, by its path from the top.

    Raises:
        RecipeYamlError: not YAML, too long or too deep, or a tag, an alias, a duplicate key or a key that is not a
            string.
    """
    if len(text) > LONGEST:
        raise RecipeYamlError(f"it has {len(text):,} characters, and no recipe needs more than {LONGEST:,}")
    try:
        loader = _Loader(text)
    except yaml.YAMLError as error:  # a character that YAML does not allow
        raise RecipeYamlError(f"not YAML: {error}") from None
    try:
        node = loader.get_single_node()
        lines: Line = {}
        if node is None:
            return None, lines
        _walk(node, (), lines)
        return loader.construct_document(node), lines
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise RecipeYamlError(f"not YAML: {error.problem or error.context}", mark.line + 1 if mark else 0) from None
    except yaml.YAMLError as error:
        raise RecipeYamlError(f"not YAML: {error}") from None
    finally:
        loader.dispose()


def _walk(node: yaml.Node, path: tuple[str, ...], lines: Line) -> None:
    """Note each key's line; refuse duplicate keys and keys that are not strings."""
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _walk(item, path, {})
    if not isinstance(node, yaml.MappingNode):
        return
    seen: dict[str, int] = {}
    for key, value in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            raise RecipeYamlError("a key must be a plain name", line)
        if key.value in seen:
            raise RecipeYamlError(f"`{key.value}` is given twice, first in line {seen[key.value]}: keep one", line)
        seen[key.value] = line
        key.tag = "tag:yaml.org,2002:str"
        lines[(*path, key.value)] = line
        _walk(value, (*path, key.value), lines)


def dump(value: dict[str, Any]) -> str:
    """Write plain dicts, lists and scalars as YAML, keys in their order; `parse` reads back the same."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)
