"""Every key of the configuration: changed on resuming it is in the table of `identity`, or refused.

And every byte of a run's files: changed it is refused, or does not matter.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from blocklocal import UserError
from blocklocal.config import RunConfig, dotted, known_keys, load_config, make_config
from blocklocal.identity import (
    CLOSED_WITHIN,
    LENGTH,
    OPEN,
    PLACES,
    check_settings,
    deciding,
    made_of,
)
from blocklocal.preparation import prepare
from blocklocal.resuming import recorded, with_absolute_paths
from orchestrator.rundir import RunDirectory
from orchestrator.version import code_version
from tests.blocklocal.helpers import SMALL, command, save_arrays

pytestmark = pytest.mark.usefixtures("no_fsync")
VALUES: tuple[Any, ...] = (
    *(True, False, 1, 2, 3, 4, 8, 0.25, 0.5, 0.75, 1.5, None, [1, 2], [0.5, 0.25], ["layer3"]),
    *("x", "a.b:c", "auto", "/elsewhere/x", {"every": 2}, {"n": 1}, {"kind": "sgd"}),
)


def _words(schema: object) -> Iterator[str]:
    """All words that a setting may be one of."""
    if isinstance(schema, dict):
        found = [*schema.get("enum", ()), schema.get("const")]
        yield from (word for word in found if isinstance(word, str))
        for inner in schema.values():
            yield from _words(inner)
    elif isinstance(schema, list):
        for inner in schema:
            yield from _words(inner)


WORDS = tuple(dict.fromkeys(_words(RunConfig.model_json_schema())))
KINDS: dict[str, list[dict[str, Any]]] = {
    "data": [
        {"kind": "arrays", "path": "x.npz"},
        {"kind": "parquet", "train": "a", "test": "b"},
        {"kind": "text", "path": "a.txt"},
        {"kind": "reversal"},
    ],
    "optimizer": [{"kind": "sgd", "clip": 1.0}],
    "lanes": [{"max": 2, "sync": {"every": 2}}],
    "training": [{"steps": 4, "shards": 2}, {"steps": None}],
    "network": [{"kind": "custom", "factory": "a:b"}],
}


def _variants() -> Iterator[dict[str, Any]]:
    """Configurations that together have every key."""
    yield {}
    for section, trees in KINDS.items():
        for tree in trees:
            yield {section: tree}
    schema = RunConfig.model_json_schema()["properties"]
    for section, told in schema.items():
        for kind in told.get("discriminator", {}).get("mapping", ()):
            try:
                make_config({section: {"kind": kind}})
            except UserError:
                continue  # of those with something that must be given there is one above
            yield {section: {"kind": kind}}


def _changed(base: RunConfig, key: str) -> RunConfig | None:
    """The configuration with another value of one key, if there is one."""
    now, tree = dotted(base)[key], base.model_dump(mode="json")
    for value in (*VALUES, *WORDS) if not isinstance(now, str) else (*WORDS, *VALUES):
        try:
            config = load_config(None, [f"{key}={json.dumps(value)}"], base=tree)
        except UserError:
            continue
        if dotted(config).get(key, "gone") != now:
            return config
    return None


def _may(key: str, config: RunConfig) -> bool:
    """Whether the table says that a key may differ."""
    if key in PLACES or key.startswith(tuple(CLOSED_WITHIN)):
        return False
    if key.partition(".")[0] in OPEN or key in LENGTH:
        return True
    value: Any = config
    for name in key.split("."):
        value = getattr(value, name, None)
    return key.startswith("data.") and isinstance(value, Path)


def _run_of(config: RunConfig, path: Path) -> RunDirectory:
    """A run directory of a configuration, with a plan of digits; nothing was trained."""
    small = prepare(load_config(None, SMALL))
    told = small.fingerprints.model_copy(update={"configuration": deciding(config)})
    return RunDirectory.create(
        path,
        config=recorded(config),
        version=code_version(),
        plan=small.plan,
        fingerprints=told,
    )


def test_every_changed_key_is_allowed_or_refused_by_name(tmp_path: Path) -> None:
    seen, unchanged = set(), set()
    for number, tree in enumerate(_variants()):
        base = with_absolute_paths(make_config(tree))
        run = _run_of(base, tmp_path / str(number))
        made = made_of(run)
        check_settings(made, run, base)
        for key in dotted(base):
            if key in seen or key == "run.given":
                continue
            config = _changed(base, key)
            if config is None:
                unchanged.add(key)
                continue
            seen.add(key)
            unchanged.discard(key)
            length = key in LENGTH and (base.training.steps is None or key == "training.steps")
            if _may(key, config) and (key not in LENGTH or length):
                check_settings(made, run, config, [key])
                continue
            with pytest.raises(UserError) as caught:
                check_settings(made, run, config, [key])
            said = str(caught.value)
            # Some keys change another with them: a kind its section, blocks.at their count.
            told = key if not key.endswith((".kind", ".at")) else key.partition(".")[0]
            assert told in said and len(said) < 500, (key, said)
            if key in PLACES:
                continue
            # Where nobody has said it the file was edited.
            with pytest.raises(UserError, match="config.yaml has .* and the run was made with"):
                check_settings(made, run, config)
    # A preset is not given beside what it sets, as every resolved configuration does.
    missed = {k for k in unchanged - seen if not k.endswith((".kind", ".preset"))}
    assert not missed, missed
    leaves = {k for k in known_keys() if not any(o.startswith(f"{k}.") for o in known_keys())}
    assert len(seen & leaves) > 0.8 * len(leaves), sorted(leaves - seen)


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> RunDirectory:
    """A small run on a file."""
    save_arrays(tmp_path / "x.npz")
    words = ["data.kind=arrays", f"data.path={tmp_path / 'x.npz'}", "training.batch=8"]
    more = ["training.steps=2", "training.evaluate_every=2", f"run.directory={tmp_path / 'run'}"]
    command(capsys, "train", *SMALL, "network.widths=[4,4,4]", *words, *more)
    return RunDirectory.open(tmp_path / "run")


def _flips(data: bytes, every: int) -> Iterator[bytes]:
    """The data with one bit flipped, at every place."""
    draw = random.Random(len(data))
    for i in range(draw.randrange(every), len(data), every):
        yield data[:i] + bytes([data[i] ^ 1 << draw.randrange(8)]) + data[i + 1 :]


def _read(run: RunDirectory) -> object:
    """All that decides the bits of going on with a run; UserError where something is wrong."""
    made = made_of(run)
    config = make_config(run.config)
    check_settings(made, run, config)
    found = run.checkpoints.load(2)
    tensors = {k: {n: t.tolist() for n, t in s.items()} for k, s in found.state.items()}
    return made, dotted(recorded(config)), found.fingerprints, found.preprocessing, tensors


@pytest.mark.parametrize(
    ("name", "every"),
    [
        ("config.yaml", 17),
        ("fingerprints.json", 41),
        ("plan.json", 11),
        ("checkpoints/step-00000002/manifest.json", 97),
        ("checkpoints/step-00000002/block1.safetensors", 59),
        ("checkpoints/step-00000002/block2.safetensors", 59),
    ],
)
def test_a_flipped_bit_is_refused_or_does_not_matter(
    run: RunDirectory, name: str, every: int
) -> None:
    before: Any = _read(run)
    path, refused, tried = run.path / name, 0, 0
    good = path.read_bytes()
    for data in _flips(good, every):
        tried += 1
        path.write_bytes(data)
        try:
            after: Any = _read(RunDirectory.open(run.path))
        except UserError as error:
            refused += 1
            assert "\n" not in str(error) and len(str(error)) < 500
            continue
        different = {k for k in before[1] if before[1][k] != after[1].get(k)}
        may = {*OPEN, "data"}
        assert {k.partition(".")[0] for k in different} <= may, different
        assert {k for k in different if k.startswith("data")} <= {"data.path"}
        assert (before[0], *before[2:]) == (after[0], *after[2:])
    assert refused > (0.3 if name == "config.yaml" else 0.1 if "plan" in name else 0.9) * tried
