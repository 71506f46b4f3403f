"""Thousands of wrong configurations: each is accepted, or told in one short sentence, at once."""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest

from blocklocal import cli, config, early, preparation
from blocklocal.config import load_config
from blocklocal.early import Schema
from learning import memory
from learning.data import DigitsSettings, load_dataset
from learning.errors import UserError
from learning.yaml_text import YAMLTextError, parse_yaml
from tests.blocklocal.fuzzing import combined, damaged, sites, systematic
from tests.blocklocal.helpers import UNTRACKED, listing

EXAMPLE = Path(__file__).parents[2] / "examples/digits.yaml"
SECONDS = 2.0
"""Of the processor's own time that one configuration may take."""
SMALL = (*UNTRACKED, "network.widths=[8, 8, 8]", "training.batch=32", "blocks.balance=parameters")
LAST = ("blocks.balance=parameters", "engine.kind=sequential", "engine.address=null")
"""Laid over each one that is prepared: timing units and starting Ray are not what is tried."""


def _again(text: str) -> object:
    found = _parsed(text)
    if isinstance(found, YAMLTextError):
        raise found
    return copy.deepcopy(found)


@cache
def _parsed(text: str) -> object:
    """What a text means, or why it means nothing."""
    try:
        return parse_yaml(text)
    except YAMLTextError as error:
        return error


@pytest.fixture(autouse=True)
def parsed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same few values come thousands of times."""
    for module in (config, early):
        monkeypatch.setattr(module, "parse_yaml", _again)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty directory that stays empty."""
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    assert listing(tmp_path) == {}


@contextmanager
def quick(what: object) -> Iterator[None]:
    """Fail when the inside takes the processor longer than one configuration may."""
    began = time.thread_time()
    yield
    spent = time.thread_time() - began
    assert spent < SECONDS, f"{spent:.1f} s for {str(what)[:300]}"


def told(attempt: Callable[[], object], what: object) -> bool:
    """Whether something is accepted; what is refused is refused in one short sentence."""
    with quick(what):
        try:
            attempt()
        except UserError as error:
            check_sentence(str(error), what)
            return False
        except BaseException as error:
            raise AssertionError(f"{type(error).__name__}: {str(what)[:300]}") from error
    return True


def check_sentence(text: str, what: object) -> None:
    """One line that can be printed, of fewer than 500 characters."""
    assert 10 < len(text) < 500 and text.isprintable(), (text, str(what)[:300])


@cache
def verdicts() -> dict[tuple[str, ...], bool]:
    """Whether the settings accept the words of each configuration."""
    cases = [*systematic(), *combined(2_000, seed=16)]
    return {words: told(lambda words=words: load_config(None, words), words) for words in cases}


def test_every_key_with_every_value_and_several_at_once() -> None:
    found = verdicts()
    assert len(found) > 10_000 and 300 < sum(found.values()) < len(found) / 2


def test_the_schema_refuses_what_the_settings_refuse() -> None:
    """But for what two settings must be together; and never what the settings accept."""
    schema, wrong = Schema.load(), []
    for words, accepted in verdicts().items():
        try:
            fits = schema.fits(schema.configuration(words))
        except ValueError:
            fits = False
        if fits != accepted:
            assert fits, f"the schema refuses {str(words)[:300]}"
            wrong.append(words)
    assert len(wrong) < 200, wrong


def test_damaged_files(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("damaged") / "run.yaml"
    taken = 0
    for data in damaged(EXAMPLE.read_bytes(), 1_000, seed=5):
        path.write_bytes(data)
        taken += told(lambda: load_config(path), data)
    assert taken > 20


@pytest.fixture
def prepared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Digits that are read once, and a machine of 256 MiB."""
    digits = load_dataset(DigitsSettings())
    monkeypatch.setattr(memory, "machine_bytes", lambda: 2**28)
    monkeypatch.setattr(
        preparation, "load_dataset", lambda s: digits if s == DigitsSettings() else load_dataset(s)
    )


@pytest.mark.usefixtures("prepared")
@pytest.mark.parametrize("part", range(4))
def test_what_is_accepted_can_be_prepared(capsys: pytest.CaptureFixture[str], part: int) -> None:
    """A sample of them, by the command itself: data, network, plan and rule are made."""
    chosen = random.Random(part).sample([w for w, fits in verdicts().items() if fits], 60)
    codes = set()
    for words in chosen:
        with quick(words):
            try:
                code = cli.main(["train", "--dry-run", *SMALL, *words, *LAST])
            except BaseException as error:
                raise AssertionError(f"{type(error).__name__}: {str(words)[:300]}") from error
        said = capsys.readouterr().err
        assert code in (0, 2), words
        if code == 2:
            check_sentence(said.removesuffix("\n"), words)
        codes.add(code)
    assert codes == {0, 2}


def test_all_settings_are_tried() -> None:
    assert len({site.key for site in sites()}) > 120
