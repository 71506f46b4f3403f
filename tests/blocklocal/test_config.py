"""YAML files, `dotted.key=value` words, and what is said about wrong ones."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from blocklocal.config import RunConfig, dotted, load_config, make_config
from learning.errors import UserError
from learning.networks import MLPSettings
from learning.rules import BLL, Local
from learning.settings import AdamWSettings, SGDSettings


def _file(directory: Path, text: str) -> Path:
    path = directory / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_defaults() -> None:
    config = load_config(None)
    assert config == RunConfig()
    assert isinstance(config.rule, Local) and isinstance(config.optimizer, AdamWSettings)


def test_words_overlay_the_file(tmp_path: Path) -> None:
    path = _file(tmp_path, "training: {batch: 64, seed: 5}\nrun: {name: a}\n")
    config = load_config(path, ["training.batch=32", "run.name=b"])
    assert (config.training.batch, config.training.seed, config.run.name) == (32, 5, "b")


def test_the_last_word_wins() -> None:
    assert load_config(None, ["training.seed=1", "training.seed=2"]).training.seed == 2


def test_a_base_is_overlaid_and_kept() -> None:
    base = RunConfig().model_dump(mode="json")
    assert load_config(None, ["engine.window=7"], base=base).engine.window == 7
    assert base == RunConfig().model_dump(mode="json")


def test_a_section_in_part_keeps_the_default_kind() -> None:
    config = load_config(None, ["network.widths=[8, 4]", "optimizer.lr=0.5"])
    assert config.network == MLPSettings(widths=(8, 4))
    assert config.optimizer == AdamWSettings(lr=0.5)


def test_another_kind_drops_the_old_settings(tmp_path: Path) -> None:
    path = _file(tmp_path, "optimizer: {kind: adamw, lr: 0.5, betas: [0.8, 0.9]}\n")
    assert load_config(path, ["optimizer.kind=sgd"]).optimizer == SGDSettings()
    assert load_config(path, ["optimizer={kind: sgd, lr: 2}"]).optimizer == SGDSettings(lr=2)


def test_the_same_kind_keeps_the_settings(tmp_path: Path) -> None:
    path = _file(tmp_path, "optimizer: {kind: adamw, lr: 0.5}\n")
    assert load_config(path, ["optimizer.kind=adamw"]).optimizer == AdamWSettings(lr=0.5)


def test_a_kind_inside_a_rule_is_replaced_whole(tmp_path: Path) -> None:
    optimizer = "rule: {kind: bll, feedback: {optimizer: {kind: adamw, betas: [0.8, 0.9]}}}\n"
    rule = load_config(_file(tmp_path, optimizer), ["rule.feedback.optimizer.kind=sgd"]).rule
    assert isinstance(rule, BLL) and rule.feedback.optimizer == SGDSettings()


@pytest.mark.parametrize(
    ("text", "word", "kept"),
    [
        ("engine: {kind: ray, window: 9}", "engine.kind=sequential", ("engine.window", 9)),
        (
            "rule: {kind: bll, latent: {kind: gaussian, grid: 7}}",
            "rule.latent.kind=bernoulli",
            ("rule.latent.grid", 7),
        ),
        (
            "rule: {kind: local, head: {kind: linear, width: 9}}",
            "rule.head.kind=conv",
            ("rule.head.width", 9),
        ),
    ],
)
def test_a_kind_of_one_model_only_keeps_the_other_settings(
    tmp_path: Path, text: str, word: str, kept: tuple[str, int]
) -> None:
    flat = dotted(load_config(_file(tmp_path, text), [word]))
    assert flat[kept[0]] == kept[1]
    assert flat[word.partition("=")[0]] == word.partition("=")[2]


def test_lists_nulls_and_exponents() -> None:
    words = ["blocks.at=[layer2, layer3]", "optimizer.lr=[1e-3, 2E-2, 0.1]", "training.steps=null"]
    config = load_config(None, words)
    assert config.blocks.at == ("layer2", "layer3") and config.blocks.count == 3
    assert config.optimizer.lr == (0.001, 0.02, 0.1)
    assert config.training.steps is None
    assert load_config(None, ["optimizer.lr=1e-3"]).optimizer.lr == 0.001


def test_a_value_may_hold_equal_signs() -> None:
    uri = "http://host/?a=b"
    assert load_config(None, [f"tracking.uri={uri}"]).tracking.uri == uri


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ({"training.steps": 1}, "'training.steps' has dots.* write training: {steps: ...} in"),
        ({"training": {"batch": 8}, "run.name": "a"}, "'run.name' has dots"),
        ({"network.kind": "mlp"}, "'network.kind' has dots"),
        ({"rule": {"head.kind": "mlp"}}, "'head.kind' has dots.* write head: {kind: ...} in"),
        ({"rule.head.kind": "mlp"}, "write rule: {head: {kind: ...}} in a file"),
        ({"trainng.batch": 3}, "unknown setting trainng.batch: did you mean training.batch?"),
    ],
    ids=str,
)
def test_dotted_keys_are_for_the_command_line(tree: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        make_config(tree)


def test_arguments_of_a_custom_network_are_free() -> None:
    words = ["network.kind=custom", "network.factory=a.b:c", "network.arguments.deep.er=[1, x]"]
    assert dotted(load_config(None, words).network)["arguments.deep.er"] == [1, "x"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["trainng.batch=3"], "unknown setting trainng: did you mean training?"),
        (
            ["training.bach=3"],
            "unknown setting training.bach: did you mean training.batch?",
        ),
        (
            ["rule.kind=bll", "rule.latnt.grid=3"],
            "unknown setting rule.latnt: did you mean rule.latent?",
        ),
        (["qqqq=3"], "unknown setting qqqq: see docs/configuration.md for all keys"),
        (
            ["network.kind=resnet", "network.activation=relu"],
            "network.kind = resnet has no setting activation: leave network.activation out or "
            "choose another network.kind",
        ),
        (
            ["training.batch=x"],
            "training.batch = 'x' is not possible: input should be a valid integer",
        ),
        (
            ["optimizer.lr=-1"],
            "optimizer.lr = -1 is not possible: input should be greater than or equal to 0 or "
            "input should be a valid tuple",
        ),
        (
            ["training.epochs=.inf"],
            "training.epochs = inf is not possible: input should be a finite number",
        ),
        (
            ["network.widths=[8, 0]"],
            "network.widths.1 = 0 is not possible: input should be greater than or equal to 1",
        ),
        (
            ["optimizer.momentum=1", "optimizer.kind=sgd"],
            "optimizer.momentum = 1 is not possible: input should be less than 1",
        ),
        (["rule.kind=magic"], "rule.kind = 'magic' is unknown: use one of"),
        (["data.kind=arrays"], "data.path is missing: set data.path=..."),
        (
            ["rule.kind=bll", "rule.feedback.optimizer.lr=1"],
            "rule.feedback.optimizer.kind is missing: set rule.feedback.optimizer.kind=...",
        ),
        (["training=5"], "training = 5 is not possible: input should be a valid dictionary"),
        (
            ["training.batch=10", "training.shards=4"],
            "training.batch = 10 is not a multiple of training.shards = 4: change one of them",
        ),
        (["training.batch"], "'training.batch' is not a setting: write dotted.key=value"),
        (["=3"], "'=3' is not a setting: write dotted.key=value"),
        (["run.name=[a"], "the value of 'run.name=[a' is not valid YAML (line 1, column 3: "),
        (["run.name=../up"], "run.name = '../up' is not possible: string should match pattern"),
    ],
)
def test_every_mistake_has_one_sentence(words: list[str], said: str) -> None:
    with pytest.raises(UserError) as caught:
        load_config(None, words)
    assert str(caught.value).startswith(said)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("training: {batch: [", r"run\.yaml is not valid YAML \(.*\): mend the file$"),
        ("- training", r"run\.yaml holds list, not settings: write key: value$"),
        ("", r"run\.yaml holds NoneType, not settings: write key: value$"),
    ],
)
def test_every_bad_file_has_one_sentence(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        load_config(_file(tmp_path, text))
    assert re.search(said, str(caught.value)) and "\n" not in str(caught.value)


def test_a_file_that_is_not_text(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"is not valid YAML \(.*\): mend the file"):
        load_config(path)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read .*no\.yaml \(No such file or directory\)"):
        load_config(tmp_path / "no.yaml")


def test_a_run_may_be_kept_under_the_home_directory() -> None:
    """A job's words reach its shell in quotes, so no shell replaces the ~."""
    config = load_config(None, ["run.directory=~/runs/first"])
    assert config.run.directory == Path.home() / "runs/first"
