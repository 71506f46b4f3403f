"""A sweep file: a run's configuration, and beside it the sections `sweep` and `space`."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from blocklocal.config import (
    RunConfig,
    explained,
    known_keys,
    lay_words,
    make_config,
    overlay,
    read_tree,
)
from blocklocal.precision import with_compute
from blocklocal.resuming import with_absolute_paths
from learning.errors import UserError, shown
from tuning.settings import SweepSettings
from tuning.space import Space, Values

CLOSED = ("run.", "tracking.", "checkpoints.", "engine.address", "lanes.max", "lanes.min")
"""What belongs to a sweep as a whole."""
PER_BLOCK = ("optimizer.lr",)
"""Settings that are one value for all blocks, or a list with one a block."""
_SECTIONS = ("sweep", "space")


@dataclass(frozen=True)
class SweepFile:
    """What a sweep file says, checked as far as each trial's configuration goes.

    Attributes:
        base: the configuration that trials change, as JSON knows it, paths absolute.
        written: the section `space` as it is in the file.
    """

    base: dict[str, Any]
    settings: SweepSettings
    space: Space
    written: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path, words: Sequence[str] = ()) -> SweepFile:
        """Read a file and lay `dotted.key=value` words over it; `sweep.trials=8` is one.

        Raises:
            UserError: one sentence for the first thing that is wrong.
        """
        tree = read_tree(path)
        for word in words:
            if word.startswith("space."):
                raise UserError(f"{shown(word)} changes the space: change it in {path}")
            _drop_old_kind(tree, word)
        lay_words(tree, words)
        return cls.of(tree)

    @classmethod
    def of(cls, tree: Mapping[str, Any]) -> SweepFile:
        """Check the parts of a sweep.

        Raises:
            UserError: one sentence for the first thing that is wrong.
        """
        rest = {name: value for name, value in tree.items() if name not in _SECTIONS}
        for name in rest:
            if name not in RunConfig.model_fields and name.startswith(("sw", "sp")):
                near = "space" if name.startswith("sp") else "sweep"
                raise UserError(f"unknown setting {name}: did you mean {near}?")
        base = with_absolute_paths(with_compute(make_config(_cut_alike(rest))))
        settings = make_settings(tree.get("sweep") or {})
        space = Space.read(tree.get("space"), list(known_keys()), CLOSED)
        if base.blocks.at == "auto" and base.blocks.balance == "time":
            raise UserError(
                "blocks.balance = time is measured and would cut trials differently: set it to "
                "memory or parameters, or name units in blocks.at"
            )
        if (
            base.blocks.at != "auto"
            and "blocks.count" in space.keys
            and "blocks.at" not in space.keys
        ):
            raise UserError(
                f"space varies blocks.count, and blocks.at = {list(base.blocks.at)} names where to "
                "cut: set blocks.at to auto"
            )
        return cls(base.model_dump(mode="json"), settings, space, tree["space"])

    def dump(self) -> dict[str, Any]:
        """All of it, as a sweep file has it."""
        sweep = self.settings.model_dump(mode="json")
        return {**self.base, "sweep": sweep, "space": copy.deepcopy(dict(self.written))}

    def config(self, values: Values) -> RunConfig:
        """The configuration of a trial.

        Raises:
            UserError: when these values do not go together.
        """
        return varied(self.base, values)


def make_settings(tree: Any) -> SweepSettings:
    """Validate the section `sweep`.

    Raises:
        UserError: for an unknown key, with the nearest known one, or a wrong value.
    """
    if not isinstance(tree, Mapping):
        raise UserError(f"sweep = {shown(tree)} is no section: write sweep: {{trials: 20}}")
    tree = dict(tree)
    for name, kind in (("searcher", "random"), ("scheduler", "none")):
        section = tree.get(name)
        if isinstance(section, str):
            tree[name] = {"kind": section}
        elif isinstance(section, Mapping) and "kind" not in section:
            tree[name] = {"kind": kind, **section}
    try:
        return SweepSettings.model_validate(tree)
    except ValidationError as error:
        raise UserError(explained(error, SweepSettings, "sweep.")) from error


def varied(base: Mapping[str, Any], values: Values) -> RunConfig:
    """A configuration with the values of a trial.

    Raises:
        UserError: when these values do not go together.
    """
    tree = copy.deepcopy(dict(base))
    # Kinds first, the outermost of them before all: they drop the settings of the old kind.
    for key in sorted(values, key=lambda k: (not k.endswith(".kind"), k.count("."))):
        if "[" not in key:
            overlay(tree, key.split("."), copy.deepcopy(values[key]))
    entries = {key: value for key, value in values.items() if "[" in key}
    if not entries:
        return make_config(tree)
    config = make_config(tree)
    for key, value in entries.items():
        path, index = key[:-1].split("[")
        listed = _list_at(config, path, config.blocks.count)
        if int(index) > len(listed):
            raise UserError(
                f"space varies {key}, and {path} has {len(listed)} entries where it is used: add a "
                f"`when` that leaves it out there"
            )
        listed[int(index) - 1] = value
        overlay(tree, path.split("."), listed)
        config = make_config(tree)
    return config


def _list_at(config: RunConfig, path: str, blocks: int) -> list[Any]:
    """A setting's entries; one for each block where a single value stands for all of them."""
    found: Any = config.model_dump(mode="json")
    for name in path.split("."):
        found = found.get(name) if isinstance(found, Mapping) else None
    if isinstance(found, list):
        return list(found)
    if path in PER_BLOCK:
        return [found] * blocks
    raise UserError(
        f"space varies an entry of {path} = {shown(found)}, which is no list: leave it out"
    )


def _cut_alike(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Cuts by number go by memory unless told: that is the same in every trial."""
    blocks = tree.get("blocks")
    if blocks is not None and not isinstance(blocks, Mapping):
        return dict(tree)
    return {**tree, "blocks": {"balance": "memory", **(blocks or {})}}


def _drop_old_kind(tree: dict[str, Any], word: str) -> None:
    """Where a word changes the kind of a section of `sweep`, the old kind's settings go."""
    key, _, kind = word.partition("=")
    parts = key.split(".")
    sweep = tree.get("sweep")
    if len(parts) == 3 and parts[0] == "sweep" and parts[2] == "kind" and isinstance(sweep, dict):
        old = sweep.get(parts[1])
        if not isinstance(old, dict) or old.get("kind") != kind:
            sweep[parts[1]] = {}
