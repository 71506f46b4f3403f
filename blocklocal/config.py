"""The run configuration: one model behind YAML files, `dotted.key=value` and the Python API."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ValidationError, model_validator

from blocklocal.sections import EngineSettings, RunSettings, TrainingSettings
from blocklocal.setting_models import models_at, models_in, written_keys
from learning.data import DataSettings, DigitsSettings
from learning.errors import UserError, named, shown
from learning.networks import MLPSettings, NetworkSettings
from learning.rules import Local, RuleSettings
from learning.settings import (
    AdamWSettings,
    CodecSettings,
    ConstantSchedule,
    Float32CodecSettings,
    OptimizerSettings,
    PrecisionSettings,
    ScheduleSettings,
    Settings,
    UpdateSettings,
)
from learning.yaml_files import MOST_BYTES, read_yaml
from learning.yaml_text import MOST_DEPTH, YAMLTextError, parse_yaml
from orchestrator.lane_settings import LaneSettings
from orchestrator.settings import BlocksSettings
from orchestrator.storage import CheckpointSettings
from tuning.tracking import TrackingSettings


class RunConfig(Settings):
    """Everything that determines a run."""

    run: RunSettings = RunSettings()
    data: DataSettings = DigitsSettings()
    network: NetworkSettings = MLPSettings()
    blocks: BlocksSettings = BlocksSettings()
    rule: RuleSettings = Local()
    optimizer: OptimizerSettings = AdamWSettings()
    schedule: ScheduleSettings = ConstantSchedule()
    precision: PrecisionSettings = PrecisionSettings()
    update: UpdateSettings = UpdateSettings()
    codec: CodecSettings = Float32CodecSettings()
    training: TrainingSettings = TrainingSettings()
    checkpoints: CheckpointSettings = CheckpointSettings()
    engine: EngineSettings = EngineSettings()
    lanes: LaneSettings = LaneSettings()
    tracking: TrackingSettings = TrackingSettings()

    @model_validator(mode="after")
    def _lanes_agree(self) -> Self:
        if self.engine.recovery.mode == "local" and self.lanes.max > 1:
            raise ValueError(
                f"engine.recovery.mode = local lets blocks differ in how far they are, but the "
                f"lanes of lanes.max = {self.lanes.max} are copies: use mode = exact or "
                "lanes.max = 1"
            )
        return self

    @model_validator(mode="after")
    def _graphs_need_a_gpu(self) -> Self:
        on_gpu = self.engine.kind == "ray" and self.engine.resources.gpus > 0
        if self.precision.compile == "cuda-graphs" and not on_gpu:
            raise ValueError(
                "precision.compile = 'cuda-graphs' needs blocks on GPUs: set engine.kind=ray and "
                "engine.resources.gpus above 0, or use precision.compile=inductor"
            )
        return self


def load_config(
    path: Path | None, overrides: Sequence[str] = (), base: Mapping[str, Any] | None = None
) -> RunConfig:
    """Read a YAML file and lay `dotted.key=value` words over it.

    Args:
        path: the file; None starts from `base`, or from the defaults.

    Raises:
        UserError: one sentence for the first thing that is wrong.
    """
    tree = copy.deepcopy(dict(base or {})) if path is None else read_tree(path)
    lay_words(tree, overrides)
    return make_config(tree)


def read_tree(path: Path, most_bytes: int = MOST_BYTES) -> dict[str, Any]:
    """Read a YAML file of settings, not validated.

    Args:
        most_bytes: that it may have.

    Raises:
        UserError: when it cannot be read or holds anything else.
    """
    loaded = read_yaml(path, most_bytes)
    if not isinstance(loaded, dict):
        what = type(loaded).__name__
        raise UserError(f"{named(path)} holds {what}, not settings: write key: value")
    return loaded


def lay_words(tree: dict[str, Any], words: Sequence[str]) -> None:
    """Lay `dotted.key=value` words over a tree, from left to right.

    Raises:
        UserError: for a word that is no setting.
    """
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not key:
            raise UserError(f"{shown(word)} is not a setting: write dotted.key=value")
        path = key.split(".")
        if len(path) > MOST_DEPTH:
            raise UserError(
                f"{shown(word)} names a setting {len(path)} levels deep: use at most {MOST_DEPTH}"
            )
        try:
            value = parse_yaml(text)
        except YAMLTextError as error:
            raise UserError(
                f"the value of {shown(word)} is not valid YAML ({error}): mend or quote it"
            ) from error
        overlay(tree, path, value)


def make_config(tree: Mapping[str, Any]) -> RunConfig:
    """Validate a tree of settings.

    Raises:
        UserError: for an unknown key, with the nearest known one, or a wrong value.
    """
    complete = dict(tree)
    for name, info in RunConfig.model_fields.items():
        # A section that is given in part keeps the default kind.
        section, kind = complete.get(name), getattr(info.default, "kind", None)
        if isinstance(section, Mapping) and "kind" not in section and kind is not None:
            complete[name] = {"kind": kind, **section}
    try:
        return RunConfig.model_validate(complete)
    except ValidationError as error:
        raise UserError(explained(error)) from error


def overlay(tree: dict[str, Any], path: Sequence[str], value: Any) -> None:
    """Set one value; where `kind` chooses another model, the old one's settings are dropped."""
    chooses = path[-1] == "kind" and len(models_at(path[:-1], RunConfig)) > 1
    for name in path[:-1]:
        if not isinstance(tree.get(name), dict):
            tree[name] = {}
        tree = tree[name]
    last = path[-1]
    if chooses and tree.get("kind", value) != value:
        tree.clear()
    tree[last] = value


def dotted(settings: BaseModel | Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """All values by dotted key, as `dotted.key=value` takes them."""
    tree = settings.model_dump(mode="json") if isinstance(settings, BaseModel) else settings
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat |= dotted(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def explained(error: ValidationError, model: type[BaseModel] = RunConfig, prefix: str = "") -> str:
    """One sentence for the first thing that is wrong with settings.

    Args:
        model: of the settings.
        prefix: of their keys, `sweep.` for instance.
    """
    first = error.errors()[0]
    unknown = first["type"] == "extra_forbidden"
    key = prefix + ".".join(written_keys(first["loc"], model, keep_last=unknown))
    if unknown and "." in (last := str(first["loc"][-1])) and key in known_keys(model, prefix):
        *sections, name = last.split(".")
        return (
            f"the key {shown(last)} has dots, which settings on the command line have: write "
            f"{': {'.join([*sections, name])}: ...{'}' * len(sections)} in a file"
        )
    if unknown and key in known_keys(model, prefix):
        section, _, name = key.rpartition(".")
        return (
            f"{section}.kind = {first['loc'][-2]} has no setting {name}: leave {key} out or choose "
            f"another {section}.kind"
        )
    if unknown:
        near = difflib.get_close_matches(key, list(known_keys(model, prefix)), n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else "see docs/configuration.md for all keys"
        return f"unknown setting {key}: {hint}"
    if first["type"] == "union_tag_invalid":
        context = first.get("ctx", {})
        tag, expected = context.get("tag"), context.get("expected_tags")
        return f"{key}.kind = {shown(tag)} is unknown: use one of {expected}"
    if first["type"] == "union_tag_not_found":
        return f"{key}.kind is missing: set {key}.kind=..."
    if first["type"] == "value_error":
        message = str(first["msg"]).removeprefix("Value error, ")
        return message if not key or key in message else f"{key}: {message}"
    if first["type"] == "missing":
        return f"{key} is missing: set {key}=..."
    # Each member of a union such as `"auto" | int` reports what it would have taken.
    same = [
        e
        for e in error.errors()
        if prefix + ".".join(written_keys(e["loc"], model, keep_last=False)) == key
    ]
    reasons = " or ".join(dict.fromkeys(e["msg"][0].lower() + e["msg"][1:] for e in same))
    return f"{key} = {shown(first['input'])} is not possible: {reasons}"


def known_keys(model: type[BaseModel] = RunConfig, prefix: str = "") -> Iterator[str]:
    """All dotted keys that exist, over every kind of every section."""
    for name, info in model.model_fields.items():
        yield f"{prefix}{name}"
        for inner in models_in(info.annotation):
            yield from known_keys(inner, f"{prefix}{name}.")
