"""The documented keys, kinds and defaults are those that exist."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from blocklocal.config import RunConfig, known_keys
from blocklocal.setting_models import models_in
from learning.rules import RULES
from tests.docs.pages import PAGES, ROOT
from tests.docs.ranges import in_words
from tuning.settings import SweepSettings

CONFIGURATION = ROOT / "docs/configuration.md"

MODELS = ((RunConfig, ""), (SweepSettings, "sweep."))
"""What is documented, with the beginning of its keys."""
KEYS = [key for model, prefix in MODELS for key in known_keys(model, prefix)]


def documented() -> dict[tuple[str, str], str]:
    """(dotted key, kind) to the default in the tables."""
    rows: dict[tuple[str, str], str] = {}
    for line in CONFIGURATION.read_text().splitlines():
        match = re.match(r"\| `([\w.]+)` \| ([\w, -]+) \| .* \| (`.*?`|-) \| .+ \|$", line)
        if line.startswith("| `"):
            assert match, f"not a row of five cells: {line}"
        if match:
            for kind in match[2].split(", "):
                assert (match[1], kind) not in rows, f"{match[1]} is documented twice for {kind}"
                rows[match[1], kind] = match[3].strip("`")
    return rows


def settings(model: type[BaseModel] = RunConfig, prefix: str = "") -> Iterator[tuple[Any, ...]]:
    """Every value of every kind: (dotted key, kind, field)."""
    kind = model.model_fields["kind"].default if "kind" in model.model_fields else "any"
    for name, info in model.model_fields.items():
        inner = models_in(info.annotation)
        if not inner:
            yield f"{prefix}{name}", kind, info
        for one in inner:
            yield from settings(one, f"{prefix}{name}.")


def test_every_key_is_documented() -> None:
    sections = set(re.findall(r"^##+ `([\w.]+)`$", CONFIGURATION.read_text(), re.MULTILINE))
    rows = {key for key, _ in documented()}
    assert sorted(set(KEYS) - rows - sections) == []


def test_no_other_key_is_documented() -> None:
    sections = set(re.findall(r"^##+ `([\w.]+)`$", CONFIGURATION.read_text(), re.MULTILINE))
    rows = {key for key, _ in documented()}
    assert sorted((rows | sections) - set(KEYS)) == ["sweep"]


def test_no_page_names_a_key_that_does_not_exist() -> None:
    known, tops = set(KEYS), "|".join([*RunConfig.model_fields, "sweep"])
    for page in PAGES:
        for key in re.findall(rf"`((?:{tops})\.[a-z_.]+)(?:=[^`]*)?`", page.read_text()):
            is_file = key.endswith((".py", ".yaml", ".json", ".md"))
            assert is_file or key in known or key.startswith("network.arguments."), (page, key)


def test_documented_limits() -> None:
    """What a number may be, as its type has it; a cell may say more."""
    cells = {}
    for line in CONFIGURATION.read_text().splitlines():
        if match := re.match(r"\| `([\w.]+)` \| ([\w, -]+) \| (.*?) \| (?:`.*?`|-) \|", line):
            cells |= {(match[1], kind): match[3] for kind in match[2].split(", ")}
    for key, kind, info in (row for model, prefix in MODELS for row in settings(model, prefix)):
        words = in_words(info)
        if words is not None:
            cell = cells.get((key, kind)) or cells[key, "any"]
            assert words in cell, f"{key} of kind {kind} is: {words}"


def test_documented_defaults_and_kinds() -> None:
    rows = documented()
    seen = set()
    for key, kind, info in (row for model, prefix in MODELS for row in settings(model, prefix)):
        row = (key, kind) if (key, kind) in rows else (key, "any")
        assert row in rows, f"{key} is not documented for kind {kind}"
        seen.add(row)
        if key.endswith(".kind"):
            continue  # the section's default, below
        if info.is_required():
            assert rows[row] == "-", key
        else:
            default = info.get_default(call_default_factory=True)
            plain = json.loads(json.dumps(default, default=list))
            text = plain if isinstance(plain, str) else json.dumps(plain)
            assert rows[row] == text, key
    assert seen == set(rows), "a kind that does not have the key"
    defaults = RunConfig().model_dump(mode="json")
    for section in ("data", "network", "rule", "optimizer", "schedule"):
        assert rows[f"{section}.kind", "any"] == defaults[section]["kind"]


def test_documented_kinds_are_all_kinds() -> None:
    table = CONFIGURATION.read_text()
    for section, info in RunConfig.model_fields.items():
        models = models_in(info.annotation)
        if len(models) < 2:
            continue
        line = next(x for x in table.splitlines() if x.startswith(f"| `{section}.kind` "))
        named = set(re.findall(r"`([\w-]+)`", line.split("|")[3]))
        assert named == {m.model_fields["kind"].default for m in models}


def test_every_rule_has_a_page() -> None:
    overview = (ROOT / "docs/rules/README.md").read_text()
    for rule in RULES:
        kind = rule.model_fields["kind"].default
        assert (ROOT / f"docs/rules/{kind}.md").is_file()
        assert f"]({kind}.md)" in overview
