"""YAML of people we do not know: plain values only, and never more of them than somebody would write by hand.

An alias may stand for a list that stands for ten lists and so on (nine lines are a billion values), or for what it
stands in. What a file comes to once its aliases are written out is counted before any of it is made.

Departures from YAML 1.1: `1e-4` is a number, and `2024-01-01` is text.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import yaml

LONGEST_TEXT = 1_000_000  # bytes
_MOST_VALUES = 20_000  # with aliases written out
_DEEPEST = 40
_LONGEST_NUMBER = 400  # characters


class Document(NamedTuple):
    """The values, and the nodes they were made from, which know their lines. Both None for an empty text."""

    value: object
    node: yaml.Node | None


def read_yaml(text: str) -> Document:
    """The one document of a text. Raises yaml.YAMLError, with a `problem` and mostly a `problem_mark`, for what is no
    YAML, too much, too deep, within itself, or no plain value (text, number, true, false, null, list, mapping).
    """
    if len(text) > LONGEST_TEXT:
        raise yaml.MarkedYAMLError(problem=f"{len(text)} characters, where at most {LONGEST_TEXT} are read")
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return Document(None, None)
        _count(node, {}, [])
        return Document(loader.construct_document(node), node)
    except (ValueError, RecursionError, TypeError, OverflowError) as error:
        raise yaml.MarkedYAMLError(problem=str(error)) from error
    finally:
        loader.dispose()


class _Loader(yaml.SafeLoader):
    """Composes no more and no deeper than we read."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._nodes = self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self._nodes += 1
        self._depth += 1
        if self._nodes > _MOST_VALUES or self._depth > _DEEPEST:
            raise _too_much(self.peek_event().start_mark, too_deep=self._depth > _DEEPEST)
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        _refuse_long(node)
        return super().construct_yaml_int(node)

    def construct_yaml_float(self, node: yaml.ScalarNode) -> float:
        _refuse_long(node)
        return super().construct_yaml_float(node)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_yaml_float)
for _name in ("binary", "omap", "pairs", "set", "timestamp"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_name}", yaml.SafeLoader.construct_undefined)


def _count(node: yaml.Node, counted: dict[int, int], above: list[int]) -> int:
    """Values in a node with its aliases written out; each node is looked at once."""
    if id(node) in above:
        raise yaml.MarkedYAMLError(problem="an alias of what it stands in", problem_mark=node.start_mark)
    if id(node) not in counted:
        above.append(id(node))
        total = 1
        if isinstance(node, yaml.SequenceNode):
            total += sum(_count(item, counted, above) for item in node.value)
        elif isinstance(node, yaml.MappingNode):
            total += sum(_count(item, counted, above) for pair in node.value for item in pair)
        above.pop()
        if total > _MOST_VALUES:
            raise _too_much(node.start_mark)
        counted[id(node)] = total
    return counted[id(node)]


def _too_much(mark: yaml.Mark, *, too_deep: bool = False) -> yaml.MarkedYAMLError:
    problem = f"more than {_DEEPEST} levels" if too_deep else f"more than {_MOST_VALUES} values, aliases written out"
    return yaml.MarkedYAMLError(problem=problem, problem_mark=mark)


def _refuse_long(node: yaml.ScalarNode) -> None:
    if len(node.value) > _LONGEST_NUMBER:
        problem = f"a number of {len(node.value)} characters"
        raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
