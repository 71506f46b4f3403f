"""What a text of YAML 1.2 means, read strictly.

Read are mappings, lists and scalars of the core schema, with anchors and aliases. Whatever could be
meant otherwise is refused: two keys alike, keys that are no text, tags, merge keys, several
documents. What is read has bounds, so that no small file becomes a large or deep tree.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import yaml

from learning.errors import one_line, shown
from learning.yaml_scalars import plain_scalar

MOST_DEPTH = 50
MOST_VALUES = 100_000
"""Values of a tree, those of aliases counted each time."""


class YAMLTextError(ValueError):
    """A text that is not read; the message is the reason and says what to do."""


def parse_yaml(text: str) -> Any:
    """What a text means; None for an empty one.

    Raises:
        YAMLTextError: with the reason.
    """
    try:
        return _Reader(yaml.parse(text, Loader=yaml.SafeLoader)).document()
    except yaml.YAMLError as error:
        raise YAMLTextError(_reason(error)) from error


@dataclass(frozen=True)
class _Read:
    """A value, with how deep it is and how many values it holds, itself included."""

    value: Any
    depth: int = 1
    count: int = 1


class _Reader:
    """Makes values of PyYAML's events."""

    def __init__(self, events: Iterator[yaml.Event]) -> None:
        self._events = events
        self._anchors: dict[str, _Read | None] = {}  # None: not complete yet
        self._count = 0

    def document(self) -> Any:
        """The value of the only document."""
        next(self._events)  # the stream's start
        start = next(self._events)
        if not isinstance(start, yaml.DocumentStartEvent):
            return None
        if start.tags or start.version not in (None, (1, 2)):
            raise YAMLTextError(
                f"{_line(start)}: a directive begins it: leave out what starts with %"
            )
        found = self._value(next(self._events), 1)
        next(self._events)  # the document's end
        after = next(self._events)
        if not isinstance(after, yaml.StreamEndEvent):
            raise YAMLTextError(f"{_line(after)}: a second document begins: keep one")
        return found.value

    def _value(self, event: yaml.Event, depth: int) -> _Read:
        if depth > MOST_DEPTH:
            raise YAMLTextError(
                f"{_line(event)}: it is more than {MOST_DEPTH} levels deep: use fewer"
            )
        if isinstance(event, yaml.AliasEvent):
            found = self._alias(event)
            self._counted(event, found.count)
            if depth - 1 + found.depth > MOST_DEPTH:
                raise YAMLTextError(
                    f"{_line(event)}: *{_bare(event.anchor)} makes it more than {MOST_DEPTH} "
                    "levels deep: use fewer"
                )
            return replace(found, value=copy.deepcopy(found.value))  # words may be laid over one
        self._counted(event, 1)
        assert isinstance(event, yaml.NodeEvent)
        anchor, tag = event.anchor, getattr(event, "tag", None)
        if tag is not None:
            raise YAMLTextError(f"{_line(event)}: the tag {shown(tag)} is not read: leave it out")
        if anchor is not None:
            self._anchors[anchor] = None
        if isinstance(event, yaml.ScalarEvent):
            found = _Read(_scalar(event))
        elif isinstance(event, yaml.SequenceStartEvent):
            found = self._list(depth)
        else:
            found = self._mapping(depth)
        if anchor is not None:
            self._anchors[anchor] = found
        return found

    def _list(self, depth: int) -> _Read:
        items: list[_Read] = []
        while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
            items.append(self._value(event, depth + 1))
        return _around([item.value for item in items], items)

    def _mapping(self, depth: int) -> _Read:
        tree: dict[str, Any] = {}
        lines: dict[str, str] = {}
        items: list[_Read] = []
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            key, line = self._key(event), _line(event)
            if key in tree:
                raise YAMLTextError(
                    f"{line}: the key {shown(key)} is there already, in {lines[key]}: leave one out"
                )
            lines[key] = line
            items.append(self._value(next(self._events), depth + 1))
            tree[key] = items[-1].value
        return _around(tree, items)

    def _key(self, event: yaml.Event) -> str:
        self._counted(event, 1)
        if not isinstance(event, yaml.ScalarEvent) or event.tag is not None:
            raise YAMLTextError(f"{_line(event)}: a key is no plain text: write key: value")
        if event.implicit[0] and event.value == "<<":
            raise YAMLTextError(
                f"{_line(event)}: the merge key << is not of YAML 1.2: write the settings out"
            )
        key = _scalar(event)
        if not isinstance(key, str):
            raise YAMLTextError(
                f"{_line(event)}: the key {shown(event.value)} is no text: put it in quotes"
            )
        if event.anchor is not None:
            self._anchors[event.anchor] = _Read(key)
        return key

    def _alias(self, event: yaml.AliasEvent) -> _Read:
        name = event.anchor
        if name not in self._anchors:
            raise YAMLTextError(f"{_line(event)}: there is no anchor &{_bare(name)}: add it")
        found = self._anchors[name]
        if found is None:
            raise YAMLTextError(f"{_line(event)}: *{_bare(name)} is inside itself: write it out")
        return found

    def _counted(self, event: yaml.Event, count: int) -> None:
        self._count += count
        if self._count > MOST_VALUES:
            raise YAMLTextError(
                f"{_line(event)}: it holds more than {MOST_VALUES} values, aliases too: use fewer"
            )


def _bare(name: str) -> str:
    """An anchor without quotes."""
    return shown(name)[1:-1]


def _around(value: Any, items: list[_Read]) -> _Read:
    depth = 1 + max((item.depth for item in items), default=0)
    return _Read(value, depth, 1 + sum(item.count for item in items))


def _scalar(event: yaml.ScalarEvent) -> Any:
    if not event.implicit[0]:  # in quotes, or a block of text
        return event.value
    try:
        return plain_scalar(event.value)
    except ValueError as error:
        raise YAMLTextError(f"{_line(event)}: {shown(event.value)} is {error}") from error


def _line(event: yaml.Event) -> str:
    return f"line {event.start_mark.line + 1}"


def _reason(error: yaml.YAMLError) -> str:
    """What PyYAML says, without the text that it quotes, in one line."""
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        said = " ".join(part for part in (error.context, error.problem) if part)
        return place + one_line(said, 160)
    if isinstance(error, yaml.reader.ReaderError):
        return f"character {error.position + 1} is {shown(chr(error.character))}, no part of a text"
    return one_line(str(error), 160)
