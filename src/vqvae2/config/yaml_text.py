"""YAML from a file or an option, within budgets: a text of a few hundred bytes can stand for billions of values.

Aliases (`*name`) repeat what they refer to, so values are counted as often as they are repeated, before anything is built.
"""

from __future__ import annotations

import math
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

_SIZE = 2**22  # characters of a text
_SCALAR = 4096  # characters of one value; YAML 1.1 reads 1:2:3 as a number, which takes quadratic time
_VALUES = 200_000  # values, each counted as often as aliases repeat it; a list of classes may be long
_DEPTH = 20  # values inside values


class YamlError(ValueError):
    """A text that is not YAML, or exceeds a budget; one line."""


def parse_yaml(text: str) -> Any:
    """The value of a YAML text of plain types.

    Raises:
        YamlError: the text is not YAML, too long, nested too deeply, or stands for too many values.
    """
    if len(text) > _SIZE:
        raise YamlError(f"expected at most {_SIZE:,} characters, found {len(text):,}")
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _check_count(node)
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except YamlError:
        raise
    except yaml.MarkedYAMLError as error:
        where = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise YamlError(f"{error.problem or error.context}{where}") from None
    except (yaml.YAMLError, ValueError, TypeError, OverflowError, RecursionError) as error:
        raise YamlError(" ".join(str(error).split())[:300]) from None


def quoted(text: str) -> str:
    """A text as a YAML value that is read as this text, whatever it looks like, in one line."""
    return str(yaml.safe_dump(text, default_style='"', width=math.inf)).rstrip("\n")


class _Loader(yaml.SafeLoader):
    """Reads plain types, and checks depth and length of the values while they are read."""

    depth = 0

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        """The next value."""
        self.depth += 1
        if self.depth > _DEPTH:
            raise YamlError(f"expected at most {_DEPTH} values inside each other, found more")
        node: Node | None = super().compose_node(parent, index)
        self.depth -= 1
        if isinstance(node, ScalarNode) and len(node.value) > _SCALAR:
            raise YamlError(
                f"expected values of at most {_SCALAR} characters, found one of {len(node.value):,}"
            )
        return node


def _check_count(root: Node) -> None:
    """Count the values that a tree of nodes stands for; a node that an alias repeats is in the tree several times."""
    sizes: dict[int, int] = {}
    open_nodes: set[int] = set()

    def size(node: Node, depth: int) -> int:
        if id(node) in open_nodes:
            raise YamlError("an alias refers to a value that contains it")
        if depth > _DEPTH:
            raise YamlError(f"expected at most {_DEPTH} values inside each other, found more")
        if isinstance(node, ScalarNode):
            return 1
        if id(node) not in sizes:
            open_nodes.add(id(node))
            inner: list[Node] = []
            if isinstance(node, SequenceNode):
                inner = node.value
            elif isinstance(node, MappingNode):
                inner = [part for pair in node.value for part in pair]
            total = 1
            for part in inner:
                total += size(part, depth + 1)
                if total > _VALUES:
                    raise YamlError(
                        f"expected at most {_VALUES:,} values, repeated ones included, found more"
                    )
            open_nodes.discard(id(node))
            sizes[id(node)] = total
        return sizes[id(node)]

    size(root, 0)
