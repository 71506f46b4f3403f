"""Study files: which rules are compared, on which networks and cuts, with which seeds."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from blocklocal.config import RunConfig, lay_words, make_config, overlay, read_tree
from blocklocal.precision import settled
from learning.bounds import (
    MOST_LABEL,
    Depths,
    FilePath,
    LongText,
    Name,
    Seeds,
    Text,
    Threads,
    Words,
)
from learning.errors import UserError, shown
from learning.settings import Settings

MOST_RUNS = 100_000
Overrides = Words | dict[str, Any]
"""`dotted.key=value` words, or a tree of settings."""
Key = tuple[str, str | None, str | None]
"""Rule, network and blocks of a combination, by label."""

DEFAULTS = ("engine.kind=sequential", "engine.resources.threads=1", "tracking.enabled=false")
"""How runs of a study are made, unless its `settings` or the command line say otherwise."""
BY_COUNT = "blocks.balance=memory"
"""What cuts into counted blocks go by unless told: a measure that is the same in every run."""


class Study(Settings):
    """What a study file holds; labels are free text.

    Attributes:
        base: a run configuration, relative to the study file.
        rules, networks, blocks: by label, what each one changes in the base; `blocks` may be a
            list of counts.
        split: whose rows the report is about.
        directory: where results are kept; null: studies/<name>.
    """

    name: str = Field(max_length=MOST_LABEL, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    title: Text | None = None
    description: LongText | None = None
    base: FilePath | None = None
    settings: Overrides = ()
    rules: dict[Name, Overrides] = Field(min_length=1)
    baseline: Name
    networks: dict[Name, Overrides] = Field(default={})
    blocks: Depths | dict[Name, Overrides] = ()
    seeds: Seeds = Field(default=(0, 1, 2), min_length=1)
    metric: Literal["auto", "accuracy", "perplexity"] = "auto"
    split: Literal["test", "validation"] = "test"
    workers: Threads | None = Field(default=None, description="null: one a processor core")
    directory: FilePath | None = None

    @model_validator(mode="after")
    def _names_its_baseline(self) -> Self:
        if self.baseline not in self.rules:
            raise ValueError(
                f"baseline = {shown(self.baseline)} is not among the rules: name one of "
                f"{', '.join(self.rules)}"
            )
        many = len(self.rules) * len(self.networks or {None}) * len(self.blocks or {None})
        if many * len(self.seeds) > MOST_RUNS:
            raise ValueError(
                f"the study has {many * len(self.seeds)} runs: make it several of at most "
                f"{MOST_RUNS}"
            )
        for what, values in (("seeds", self.seeds), ("blocks", self.blocks)):
            if len(set(values)) < len(values):
                raise ValueError(f"{what} = {list(values)} names one twice: leave it out")
        return self


@dataclass(frozen=True)
class Combination:
    """One rule on one network, cut in one way; `network` and `blocks` are None where not varied.

    Attributes:
        tree: the settings of its runs but for the seed.
    """

    rule: str
    network: str | None
    blocks: str | None
    tree: dict[str, Any]

    @property
    def key(self) -> Key:
        """What tells it from the others."""
        return self.rule, self.network, self.blocks

    @property
    def label(self) -> str:
        """What to call it in messages and file names."""
        return ", ".join(part for part in self.key if part is not None)

    def config(self, seed: int) -> RunConfig:
        """The configuration of its run with a seed.

        Raises:
            UserError: naming the combination.
        """
        tree = copy.deepcopy(self.tree)
        try:
            overlay(tree, ["training", "seed"], seed)
            config = make_config(tree)
            if config.blocks.at == "auto" and config.blocks.balance == "time":
                raise UserError(
                    "blocks.at = auto with blocks.balance = time cuts differently in every run: "
                    "name units in blocks.at or set blocks.balance to memory or parameters"
                )
        except UserError as error:
            raise UserError(f"{self.label}: {error}") from error
        return config


def load_study(path: Path) -> Study:
    """Read a study file.

    Raises:
        UserError: one sentence for the first thing that is wrong.
    """
    try:
        return Study.model_validate(read_tree(path))
    except ValidationError as error:
        raise UserError(f"{path}: {_sentence(error)}") from error


def expand(study: Study, path: Path, words: Sequence[str] = ()) -> list[Combination]:
    """All combinations of a study, networks outermost and rules innermost.

    Where `precision.compute` is auto, all of them get the type that is faster here.

    Args:
        path: of the study file, beside which the base lies.
        words: `dotted.key=value`, laid over the base and the study's settings.

    Raises:
        UserError: for a base that cannot be read, or a setting that is none.
    """
    base = {} if study.base is None else read_tree(path.parent / study.base)
    lay_words(base, DEFAULTS)
    lay(base, study.settings)
    lay_words(base, words)
    return [
        Combination(rule, network, blocks, settled(_laid(base, of_network, of_blocks, of_rule)))
        for network, of_network in (study.networks or {None: ()}).items()
        for blocks, of_blocks in _blocks(study, base).items()
        for rule, of_rule in study.rules.items()
    ]


def lay(tree: dict[str, Any], overrides: Overrides) -> None:
    """Lay words or a tree over a tree; of each section, its kind first."""
    if not isinstance(overrides, Mapping):
        lay_words(tree, overrides)
        return
    _lay_section(tree, (), overrides)


def _lay_section(tree: dict[str, Any], path: tuple[str, ...], section: Mapping[str, Any]) -> None:
    for name, value in sorted(section.items(), key=lambda item: item[0] != "kind"):
        if isinstance(value, Mapping) and value:
            _lay_section(tree, (*path, str(name)), value)
        elif not isinstance(value, Mapping):
            overlay(tree, [*path, str(name)], value)


def _laid(base: Mapping[str, Any], *overrides: Overrides) -> dict[str, Any]:
    tree = copy.deepcopy(dict(base))
    for one in overrides:
        lay(tree, one)
    return tree


def _blocks(study: Study, base: Mapping[str, Any]) -> dict[str | None, Overrides]:
    if not study.blocks:
        return {None: ()}
    if isinstance(study.blocks, dict):
        return {**study.blocks}
    section = base.get("blocks")
    told = isinstance(section, Mapping) and section.get("balance", "time") != "time"
    measure = () if told else (BY_COUNT,)
    return {
        f"{count} blocks": ("blocks.at=auto", f"blocks.count={count}", *measure)
        for count in study.blocks
    }


def _sentence(error: ValidationError) -> str:
    first = error.errors()[0]
    where = [str(part) for part in first["loc"]]
    key, message = ".".join(where), str(first["msg"])
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(key, list(Study.model_fields), n=1)
        known = ", ".join(Study.model_fields)
        return f"unknown key {key}: " + (f"did you mean {near[0]}?" if near else f"use {known}")
    if first["type"] == "missing":
        return f"{key} is missing: add it to the study"
    if first["type"] == "value_error":
        return message.removeprefix("Value error, ")
    # Each member of a union such as `words | tree` reports what it would have taken.
    top = where[0]
    same = [e["msg"] for e in error.errors() if str(e["loc"][0]) == top]
    reasons = " or ".join(dict.fromkeys(m[0].lower() + m[1:] for m in same))
    return f"{top} = {shown(first['input'])} is not possible: {reasons}"
