"""YAML as people expect it: the core types of YAML 1.2, and no key twice. Pure.

YAML 1.1, which PyYAML reads by default, takes `12:00:00` for 43200, `010` for 8, `no` for false and `2026-01-01` for a
date.
"""

import re
from typing import Any, ClassVar

import yaml


class YamlError(Exception):
    """The text is not YAML that this module reads; the message is a part of a sentence that says where and why."""


def load(text: str) -> Any:
    """The one document in a text, made of dict, list, str, int, float, bool and None; YamlError."""
    try:
        value = yaml.load(text, Loader=_Loader)  # noqa: S506 - derived from SafeLoader
        _refuse_cycles(value, set(), set())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = "" if mark is None else f"line {mark.line + 1}: "
        msg = where + " ".join((error.problem or error.context or "not readable").split())
        raise YamlError(msg) from error
    except yaml.YAMLError as error:
        msg = " ".join(str(error).split())
        raise YamlError(msg) from error
    except RecursionError as error:
        msg = "it is nested too deeply"
        raise YamlError(msg) from error
    return value


class _Loader(yaml.SafeLoader):
    # Of its own, so that nothing of YAML 1.1 is left.
    yaml_implicit_resolvers: ClassVar[dict[Any, Any]] = {}  # type: ignore[misc]
    yaml_constructors: ClassVar[dict[Any, Any]] = {}

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                msg = f"line {line}: a key must be a plain word"
                raise YamlError(msg)
            first = lines.get((key.tag, key.value))
            if first is not None:
                where = f"line {line}" if line == first else f"lines {first} and {line}"
                msg = f"the key {key.value!r} is given twice, in {where}; remove one of them"
                raise YamlError(msg)
            lines[key.tag, key.value] = line
        return node

    def construct_boolean(self, node: yaml.ScalarNode) -> bool:
        return self._read(node, _BOOLEAN, "true or false") == "true"

    def construct_integer(self, node: yaml.ScalarNode) -> int:
        text = self._read(node, _INTEGER, "a whole number")
        return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))

    def construct_decimal(self, node: yaml.ScalarNode) -> float:
        text = self._read(node, _DECIMAL, "a number")
        return float(text.replace(".inf", "inf").replace(".nan", "nan"))

    def _read(self, node: yaml.ScalarNode, pattern: re.Pattern[str], what: str) -> str:
        text = str(self.construct_scalar(node))
        if not pattern.fullmatch(text):
            msg = f"line {node.start_mark.line + 1}: {text!r:.60} is not {what}"
            raise YamlError(msg)
        return text.lower()


# The patterns of YAML 1.2's core schema, with bounds on the digits.
_NULL = re.compile(r"~|null|Null|NULL|")
_BOOLEAN = re.compile(r"true|True|TRUE|false|False|FALSE")
_INTEGER = re.compile(r"[-+]?[0-9]{1,400}|0o[0-7]{1,400}|0x[0-9a-fA-F]{1,400}")
_DECIMAL = re.compile(
    r"[-+]?(?:\.[0-9]{1,400}|[0-9]{1,400}(?:\.[0-9]{0,400})?)(?:[eE][-+]?[0-9]{1,9})?"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
)

for _tag, _pattern, _construct in (
    ("null", _NULL, _Loader.construct_yaml_null),
    ("bool", _BOOLEAN, _Loader.construct_boolean),
    ("int", _INTEGER, _Loader.construct_integer),
    ("float", _DECIMAL, _Loader.construct_decimal),
    ("merge", re.compile("<<"), None),
    ("str", None, _Loader.construct_yaml_str),
    ("seq", None, _Loader.construct_yaml_seq),
    ("map", None, _Loader.construct_yaml_map),
):
    if _pattern is not None:
        # Whole texts only, though PyYAML calls `match`.
        _whole = re.compile(f"(?:{_pattern.pattern})\\Z")
        _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", _whole, None)
    if _construct is not None:
        _Loader.add_constructor(f"tag:yaml.org,2002:{_tag}", _construct)
_Loader.add_constructor(None, _Loader.construct_undefined)  # type: ignore[type-var]


def _refuse_cycles(value: Any, above: set[int], done: set[int]) -> None:
    """An alias may name what it is inside of; nothing that is made from options could print that."""
    if not isinstance(value, dict | list) or id(value) in done:
        return
    if id(value) in above:
        msg = "an alias (*) refers to a node that contains it"
        raise YamlError(msg)
    above.add(id(value))
    for item in value.values() if isinstance(value, dict) else value:
        _refuse_cycles(item, above, done)
    above.remove(id(value))
    done.add(id(value))
