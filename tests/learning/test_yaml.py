"""YAML is read as YAML 1.2, strictly and within bounds, and what is written reads back."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from learning.errors import UserError
from learning.yaml_files import MOST_BYTES, read_yaml, write_yaml
from learning.yaml_text import YAMLTextError, parse_yaml

LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12)
)
"""A file of a kilobyte that would be a tree of 10^12 values."""
LADDER = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 2000))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(
            ("true", True),
            ("False", False),
            ("TRUE", True),
            ("null", None),
            ("~", None),
            ("", None),
        ),
        *((word, word) for word in ("yes", "no", "on", "off", "y", "N", "Yes", "OFF")),
        *(("010", 10), ("-7", -7), ("+7", 7), ("0o17", 15), ("0x1F", 31), ("0b11", "0b11")),
        *(("1:30", "1:30"), ("1:30.5", "1:30.5"), ("1_000", "1_000"), ("2024-01-01", "2024-01-01")),
        *(("1e-3", 0.001), ("1e3", 1000.0), ("2E+2", 200.0), (".5", 0.5), ("5.", 5.0)),
        *((".inf", math.inf), ("-.INF", -math.inf), ("inf", "inf"), ("nan", "nan")),
        *(("'010'", "010"), ('"true"', "true"), ("=", "="), ("é", "é"), ("-", [None])),
        ("[1, yes, null]", [1, "yes", None]),
        ("{yes: no}", {"yes": "no"}),
        ("a: &x {b: [1]}\nc: *x", {"a": {"b": [1]}, "c": {"b": [1]}}),
        ("\ufeffa: 1", {"a": 1}),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text: str, value: object) -> None:
    read = parse_yaml(text)
    assert read == value and type(read) is type(value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nb: 2\na: 3", "line 3: the key 'a' is there already, in line 1: leave one out"),
        ("a: {b: 1, 'b': 2}", "line 1: the key 'b' is there already, in line 1: leave one out"),
        ("1: 2", "line 1: the key '1' is no text: put it in quotes"),
        ("true: 2", "line 1: the key 'true' is no text: put it in quotes"),
        ("? [a]\n: 1", "line 1: a key is no plain text"),
        ("<<: {a: 1}", "line 1: the merge key << is not of YAML 1.2: write the settings out"),
        ("a: *b", "line 1: there is no anchor &b: add it"),
        ("a: &a [*a]", "line 1: *a is inside itself: write it out"),
        ("a: 1\n---\nb: 2", "line 2: a second document begins: keep one"),
        ("%YAML 1.1\n---\na: 1", "line 1: a directive begins it: leave out what starts with %"),
        ("a: !!python/object:os.system x", "line 1: the tag 'tag:yaml.org,2002:python/object:"),
        ("a:\n\t- b", "line 2, column 1: while scanning for the next token found character '\\t'"),
        ("a: \0", r"character 4 is '\x00', no part of a text"),
        ("a: [", "line 1, column 5: while parsing a flow node"),
        ("[" * 3000, "line 1: it is more than 50 levels deep: use fewer"),
        ("{a: " * 3000, "line 1: it is more than 50 levels deep: use fewer"),
        ("- " * 3000, "line 1: it is more than 50 levels deep: use fewer"),
        (LAUGHS, "line 5: it holds more than 100000 values, aliases too: use fewer"),
        (LADDER, "line 49: *a47 makes it more than 50 levels deep: use fewer"),
        ("a: 1e999", "line 1: '1e999' is a number above 1.8e308, the largest that is kept"),
        ("a: 1e-999", "line 1: '1e-999' is a number closer to 0 than 5e-324"),
        ("a: " + "9" * 5000, "line 1: '9999"),
        ("a: ." + "9" * 5000, "line 1: '.9999"),
    ],
)
def test_what_could_mean_something_else_is_refused(text: str, said: str) -> None:
    with pytest.raises(YAMLTextError) as caught:
        parse_yaml(text)
    assert str(caught.value).startswith(said)
    assert len(str(caught.value)) < 300


def test_an_alias_is_a_value_of_its_own() -> None:
    """Words are laid over settings in place."""
    tree = parse_yaml("a: &x {b: 1}\nc: *x")
    tree["a"]["b"] = 2
    assert tree["c"] == {"b": 1}


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"a: \xff", "is not valid YAML (byte 3 is not UTF-8): mend the file"),
        (b"\xff\xfea\x00", "is not valid YAML (byte 0 is not UTF-8): mend the file"),
        (b"#" * (MOST_BYTES + 1), f"it has more than {MOST_BYTES} bytes"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, data: bytes, said: str) -> None:
    (tmp_path / "a.yaml").write_bytes(data)
    with pytest.raises(UserError) as caught:
        read_yaml(tmp_path / "a.yaml")
    assert said in str(caught.value)


def test_a_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("a: 1", encoding="utf-8-sig")
    assert read_yaml(tmp_path / "a.yaml") == {"a": 1}


@pytest.mark.parametrize("name", ["no.yaml", "n" * 300, "a\0b", ".", "/dev/full/x"])
def test_paths_that_name_no_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError) as caught:
        read_yaml(tmp_path / name)
    assert str(caught.value).startswith("cannot read ") and len(str(caught.value)) < 300


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.text(
    "0123456789.:eExob+-_~<=yYnNtTfFouUrRaAlLsSiI \n\t'\"#&*!|>%@`[]{},?", max_size=9
)
SCALARS = st.none() | st.booleans() | st.integers(-(10**299), 10**299) | st.floats(allow_nan=False)
TREES = st.recursive(
    SCALARS | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)


def alike(a: Any, b: Any) -> bool:
    """The same values of the same types: neither true nor 1.0 is 1."""
    if isinstance(a, dict):
        return isinstance(b, dict) and [*a] == [*b] and all(alike(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(map(alike, a, b))
    return type(a) is type(b) and a == b


@given(TREES)
@example(["\x85", {"a\x85b\u2028 c\u2029": "\n\x85 \n"}])
def test_what_is_written_reads_back(tree: object) -> None:
    assert alike(parse_yaml(write_yaml(tree)), tree)
