"""What a command line asks for, checked by the schema of the settings: within milliseconds.

The models of the settings need PyTorch, whose import takes seconds in which a local cluster could
start. The schema (schema.json, written by `python -m blocklocal.early`) knows their keys, kinds,
types and limits, not what of one setting depends on another. Nothing is said of what it refuses:
that is up to the models, which then come first.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from learning.yaml_files import read_yaml
from learning.yaml_text import parse_yaml

SCHEMA = Path(__file__).with_name("schema.json")
Node = dict[str, Any]


class Schema:
    """The JSON schema of a run's configuration, as far as the settings use it."""

    def __init__(self, tree: Node) -> None:
        self._tree = tree

    @classmethod
    def load(cls) -> Schema:
        """The schema that comes with the program."""
        return cls(json.loads(SCHEMA.read_text(encoding="utf-8")))

    def configuration(self, words: Sequence[str]) -> Any:
        """The tree of a YAML file, if any, and of the words behind it.

        Raises:
            ValueError: for a file or a word that cannot be read.
        """
        rest = list(words)
        tree: Any = read_yaml(Path(rest.pop(0))) if rest and "=" not in rest[0] else {}
        for word in rest:
            key, equals, text = word.partition("=")
            if not equals or not isinstance(tree, dict):
                raise ValueError(word)
            self._overlay(tree, key.split("."), parse_yaml(text))
        return tree

    def fits(self, value: Any, node: Node | None = None, kind: str | None = None) -> bool:
        """Whether a value is right in itself.

        Args:
            node: the schema of it; None: of a whole configuration.
            kind: of a section that names none.
        """
        node = self._resolved(self._tree if node is None else node)
        options = node.get("oneOf") or node.get("anyOf")
        if "discriminator" in node and isinstance(value, dict):
            named = value.get("kind", kind)
            place = node["discriminator"]["mapping"].get(named) if isinstance(named, str) else None
            return place is not None and self.fits(value, {"$ref": place})
        if options:
            return any(self.fits(value, option) for option in options)
        if "const" in node or "enum" in node:
            return any(value == one for one in node.get("enum", [node.get("const")]))
        match node.get("type"):
            case "object":
                return isinstance(value, dict) and self._section(value, node)
            case "array":
                return isinstance(value, list) and self._list(value, node)
            case "string":
                return isinstance(value, str) and _text(value, node)
            case "integer" | "number" as kind_of:
                return _number(value, node, whole=kind_of == "integer")
            case "boolean":
                return isinstance(value, bool)
            case "null":
                return value is None
        return True

    def _section(self, value: Node, node: Node) -> bool:
        known = node.get("properties", {})
        if node.get("additionalProperties") is False and not value.keys() <= known.keys():
            return False
        if not set(node.get("required", ())) <= value.keys():
            return False
        return all(
            self.fits(inner, known[name], _default_kind(known[name]))
            for name, inner in value.items()
            if name in known
        )

    def _list(self, value: list[Any], node: Node) -> bool:
        each = node.get("prefixItems") or [node.get("items", {})] * len(value)
        least, most = node.get("minItems", 0), node.get("maxItems", len(value))
        return least <= len(value) <= most and all(map(self.fits, value, each))

    def _overlay(self, tree: Node, path: Sequence[str], value: Any) -> None:
        """As `blocklocal.config.overlay` does."""
        chooses = path[-1] == "kind" and len(self._sections(path[:-1])) > 1
        for name in path[:-1]:
            if not isinstance(tree.get(name), dict):
                tree[name] = {}
            tree = tree[name]
        if chooses and tree.get("kind", value) != value:
            tree.clear()
        tree[path[-1]] = value

    def _sections(self, path: Sequence[str]) -> list[Node]:
        found = self._objects(self._tree)
        for name in path:
            inner = [node["properties"][name] for node in found if name in node["properties"]]
            found = [one for node in inner for one in self._objects(node)]
        return [one for at, one in enumerate(found) if one not in found[:at]]

    def _objects(self, node: Node) -> list[Node]:
        node = self._resolved(node)
        options = node.get("oneOf") or node.get("anyOf") or ()
        inner = [one for option in options for one in self._objects(option)]
        return [node] if "properties" in node else inner

    def _resolved(self, node: Node) -> Node:
        while "$ref" in node:
            node = self._tree["$defs"][node["$ref"].rpartition("/")[2]]
        return node


def _default_kind(node: Node) -> str | None:
    default = node.get("default")
    return default.get("kind") if isinstance(default, dict) else None


def _text(value: str, node: Node) -> bool:
    fits = node.get("minLength", 0) <= len(value) <= node.get("maxLength", len(value))
    return fits and value.isprintable() and re.search(node.get("pattern", ""), value) is not None


def _number(value: Any, node: Node, *, whole: bool) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    if whole and not (isinstance(value, int) or value.is_integer()):
        return False
    return (
        value >= node.get("minimum", value)
        and value <= node.get("maximum", value)
        and ("exclusiveMinimum" not in node or value > node["exclusiveMinimum"])
        and ("exclusiveMaximum" not in node or value < node["exclusiveMaximum"])
    )


def made() -> str:
    """The schema as the settings have it now."""
    from blocklocal.config import RunConfig

    return json.dumps(RunConfig.model_json_schema(), indent=1, sort_keys=True) + "\n"


if __name__ == "__main__":
    SCHEMA.write_text(made(), encoding="utf-8")
