"""All YAML files of this program: read strictly as YAML 1.2, written so that they read back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from learning.errors import UserError, named, one_line
from learning.yaml_scalars import BOOL, FLOAT, INT, NULL
from learning.yaml_text import YAMLTextError, parse_yaml

MOST_BYTES = 128 * 2**10
"""Of a file that someone writes by hand."""
MOST_RECORDED = 32 * MOST_BYTES
"""Of one that this program wrote, which has all keys and a line for each entry of a list."""


def read_yaml(path: Path, most_bytes: int = MOST_BYTES) -> Any:
    """Read a file of YAML.

    Raises:
        UserError: one sentence, for a file that cannot be read or holds something else.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(most_bytes + 1)
    except (OSError, ValueError) as error:  # a path with a NUL byte is a ValueError
        reason = getattr(error, "strerror", None) or one_line(str(error))
        raise UserError(f"cannot read {named(path)} ({reason}): give an existing file") from error
    return yaml_of(data, path, most_bytes)


def yaml_of(data: bytes, path: Path, most_bytes: int = MOST_BYTES) -> Any:
    """What a file of YAML holds.

    Args:
        path: of the file, for messages.

    Raises:
        UserError: one sentence, for anything else.
    """
    try:
        if len(data) > most_bytes:
            raise YAMLTextError(f"it has more than {most_bytes} bytes, the most of such a file")
        return parse_yaml(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        reason = f"byte {error.start} is not UTF-8"
        raise UserError(f"{named(path)} is not valid YAML ({reason}): mend the file") from error
    except YAMLTextError as error:
        raise UserError(f"{named(path)} is not valid YAML ({error}): mend the file") from error


def write_yaml(tree: Any) -> str:
    """Write a tree of JSON's types so that `parse_yaml` gives the same tree, values and types."""
    return yaml.dump(tree, Dumper=_Writer, sort_keys=False, allow_unicode=True, width=2**20)


class _Writer(yaml.SafeDumper):
    """Quotes what either YAML would take for something else than text."""

    def ignore_aliases(self, data: Any) -> bool:
        """One list in two places is written twice."""
        return True

    def represent_str(self, data: str) -> yaml.ScalarNode:
        """Escape what PyYAML would fold as the end of a line: U+0085 and the like."""
        style = '"' if set(data) & set("\x85\u2028\u2029") else None
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=style)


_Writer.add_representer(str, _Writer.represent_str)

for _kind, _pattern in (("null", NULL), ("bool", BOOL), ("int", INT), ("float", FLOAT)):
    _Writer.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", _pattern, None)
