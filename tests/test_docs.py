"""The documentation is true: keys and defaults exist, links resolve, commands and examples run."""

from __future__ import annotations

import importlib
import importlib.util
import io
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pydantic import BaseModel

import blocklocal
from benchmarks import records
from blocklocal import cli
from blocklocal.compare.study import Study
from blocklocal.config import RunConfig, known_keys, overlay
from blocklocal.setting_models import models_in
from blocklocal.sweep_checks import check_points, check_values
from blocklocal.sweep_file import SweepFile
from learning.rules import RULES, Local
from learning.settings import AdamWSettings
from tests.learning.helpers import learner_settings, make_engine, mlp, shards_of, snapshot, train
from tuning.searchers import known_points
from tuning.settings import SchedulerSettings, SearcherSettings, SweepSettings

ROOT = Path(__file__).parent.parent
README, CONTRIBUTING = ROOT / "README.md", ROOT / "CONTRIBUTING.md"
CONFIGURATION = ROOT / "docs/configuration.md"
RESULTS = ROOT / "benchmarks/results"
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *RESULTS.rglob("*.md")])

MODELS = ((RunConfig, ""), (SweepSettings, "sweep."))
"""What is documented, with the beginning of its keys."""
KEYS = [key for model, prefix in MODELS for key in known_keys(model, prefix)]
QUICK = {
    "training.steps": 2,
    "training.batch": 16,
    "engine.kind": "sequential",
    "engine.resources.threads": 1,
    "tracking.enabled": False,
}


def code_blocks(page: Path, language: str) -> list[str]:
    """The fenced code blocks of a page in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


# --- configuration ----------------------------------------------------------------------------


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


# --- links and targets ------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_resolve(page: Path) -> None:
    without_code = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code):
        if target.startswith(("http://", "https://")):
            continue
        name, _, anchor = target.partition("#")
        path = page.parent / name if name else page
        assert path.exists(), f"{page} links to {target}"
        assert not anchor or anchor in anchors(path), f"{page} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_named_files_exist(page: Path) -> None:
    rooms = "actors|benchmarks|blocklocal|docs|examples|learning|orchestrator|tests|tuning"
    for name in re.findall(rf"`((?:{rooms})/[\w/.]*)`", page.read_text()):
        example = name == "learning/rules/smoothed.py"  # the file that CONTRIBUTING adds
        assert example or (ROOT / name).exists(), f"{page} names {name}"


def test_make_targets_exist() -> None:
    assert shutil.which("make"), "make is needed"
    text = README.read_text() + CONTRIBUTING.read_text()
    targets = set(re.findall(r"^make ([a-z]+)", text, re.MULTILINE))
    assert {"demo", "test"} <= targets
    for target in targets | set(re.findall(r"`make ([a-z]+)", text)):
        done = subprocess.run(
            ["make", "-n", target], cwd=ROOT, capture_output=True, text=True, timeout=30
        )
        assert done.returncode == 0, done.stderr


# --- commands ---------------------------------------------------------------------------------


def commands() -> list[str]:
    """The `blocklocal` lines of README's code blocks, in their order."""
    lines = "\n".join(code_blocks(README, "sh")).splitlines()
    return [line.strip() for line in lines if line.strip().startswith("blocklocal ")]


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the files that README's commands name."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    shutil.copy(ROOT / "examples/digits.yaml", tmp_path / "run.yaml")
    (network,) = [code for code in code_blocks(README, "python") if code.startswith("# mynet.py")]
    (tmp_path / "mynet.py").write_text(network)
    random = np.random.default_rng(0)
    x, y = random.normal(size=(60, 5)).astype(np.float32), np.arange(60) % 3
    np.savez(tmp_path / "mine.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    images = []
    for _ in range(20):
        file = io.BytesIO()
        Image.fromarray(random.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(file, "PNG")
        images.append({"bytes": file.getvalue(), "path": None})
    table = pa.table({"img": images, "label": [i % 10 for i in range(20)]})
    for name in ("train.parquet", "test.parquet"):
        pq.write_table(table, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "mynet", raising=False)
    monkeypatch.setenv("BLOCKLOCAL_CACHE", str(tmp_path / "cache"))
    return tmp_path


def test_readme_commands_parse() -> None:
    found = {shlex.split(line)[1] for line in commands()}
    assert found == {
        "train",
        "eval",
        "export",
        "plan",
        "timeline",
        "compare",
        "track",
        "doctor",
        "tune",
    }
    for line in commands():
        words = shlex.split(line, comments=True)[1:]
        cli.app.parse_args(words, exit_on_error=False, print_error=False)


def test_readme_commands_run(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quick = [f"{key}={json.dumps(value)}" for key, value in QUICK.items()]
    for line in commands():
        words = shlex.split(line, comments=True)[1:]
        if words[0] in ("doctor", "tune"):  # need Ray
            continue
        if words[0] in ("train", "plan", "compare") and "--resume" not in words:
            words += quick
        assert cli.main(words) == 0, (line, capsys.readouterr().err)
    assert (directory / "weights.safetensors").is_file()
    assert (directory / "runs/first/timeline.png").is_file()
    assert (directory / "studies/digits/report.md").is_file()


def test_the_study_of_the_page_on_comparing(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It runs, and the table beside it has every key with its default."""
    page = ROOT / "docs/compare.md"
    (study,) = code_blocks(page, "yaml")
    (directory / "examples/studies/widths.yaml").write_text(study)
    assert cli.main(["compare", "examples/studies/widths.yaml", "--dry-run"]) == 0
    assert capsys.readouterr().out.count("would run: ") == 2 * 2 * 2 * (3 + 1)
    rows = re.findall(r"^\| (`.*?`) \| (.*?) \|", page.read_text(), re.MULTILINE)
    keys = {key: default for keys, default in rows for key in re.findall(r"`(\w+)`", keys)}
    assert list(keys) == list(Study.model_fields)
    for name, info in Study.model_fields.items():
        assert (keys[name] == "-") == info.is_required(), name
    assert keys["seeds"] == f"`{list(Study.model_fields['seeds'].default)}`"


@pytest.mark.parametrize("page", [README, ROOT / "docs/sweeps.md"], ids=["README", "sweeps"])
def test_the_sweeps_of_pages(page: Path, tmp_path: Path) -> None:
    (sweep,) = [code for code in code_blocks(page, "yaml") if "space:" in code]
    (tmp_path / "sweep.yaml").write_text(sweep)
    file = SweepFile.read(tmp_path / "sweep.yaml")
    points = known_points(file.settings, file.space)
    assert len(points) == 12
    check_points(file, points.values())
    check_values(file)


def test_the_page_on_sweeps_knows_every_kind() -> None:
    text = (ROOT / "docs/sweeps.md").read_text()
    for union in (SearcherSettings, SchedulerSettings):
        for model in models_in(union):
            assert f"| `{model.model_fields['kind'].default}` |" in text


# --- examples ---------------------------------------------------------------------------------


def test_readme_python_runs(
    directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fit = blocklocal.fit
    # All its steps: what the example prints must have learned.
    in_process = {k: v for k, v in QUICK.items() if not k.startswith("training.")}

    def quick_fit(*arguments: Any, **sections: Any) -> blocklocal.Result:
        sections = {n: dict(s) if isinstance(s, Mapping) else s for n, s in sections.items()}
        for key, value in in_process.items():
            overlay(sections, key.split("."), value)
        return fit(*arguments, **sections)

    monkeypatch.setattr(blocklocal, "fit", quick_fit)
    (example,) = [code for code in code_blocks(README, "python") if "blocklocal.fit" in code]
    exec(compile(example, str(README), "exec"), {"__name__": "example"})
    accuracy, run = capsys.readouterr().out.split()
    assert 0.75 < float(accuracy) <= 1  # of two classes
    assert (directory / run / "config.yaml").is_file()


@pytest.fixture
def smoothed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The rule of CONTRIBUTING, imported from a file."""
    (code,) = code_blocks(CONTRIBUTING, "python")
    assert len(code.splitlines()) < 60
    path = tmp_path / "smoothed.py"
    path.write_text(code)
    spec = importlib.util.spec_from_file_location("smoothed", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "smoothed", module)
    spec.loader.exec_module(module)
    return module


def test_contributing_rule_trains(smoothed: ModuleType) -> None:
    rule = smoothed.Smoothed(smoothing=0.05)
    x, _ = shards_of()(0, 0)
    options = learner_settings(batch=8, steps=40, optimizer=AdamWSettings(lr=0.01))
    engine = make_engine(rule, mlp(0), ["1", "2"], x=x, settings=options)
    batch = shards_of()(0, 0)
    history = train(engine, range(40), lambda step, shard: batch)
    for block in ("block1", "block2", "block3"):
        assert history[-1][block]["loss"] < 0.7 * history[0][block]["loss"]


def test_contributing_rule_learns_from_the_next_block(smoothed: ModuleType) -> None:
    """Without smoothing it differs from `local` by the next block's loss, in all but the last."""
    x, _ = shards_of()(0, 0)
    states = []
    for rule in (smoothed.Smoothed(smoothing=0.0), Local()):
        engine = make_engine(rule, mlp(0), ["1", "2"], x=x, settings=learner_settings(batch=8))
        train(engine, range(1), shards_of())
        states.append(snapshot(engine))
    for block, same in (("block1", False), ("block2", False), ("block3", True)):
        mine, local = (
            {n: t for n, t in state[block].items() if n.startswith("model.")} for state in states
        )
        assert all((mine[n] == local[n]).all() for n in mine) is same
        heads = [{n: t for n, t in s[block].items() if n.startswith("auxiliary.")} for s in states]
        assert all((heads[0][n] == heads[1][n]).all() for n in heads[0])


def test_contributing_says_where_rules_are_listed() -> None:
    """In the file it names, under the names it gives; every listed rule has a kind of its own."""
    text = re.sub(r"\s+", " ", CONTRIBUTING.read_text())
    match = re.search(r"add the class to the union `(\w+)` in `([\w/.]+)`", text)
    assert match
    module = importlib.import_module(match[2].removesuffix("/__init__.py").replace("/", "."))
    assert get_args(getattr(module, match[1])) == RULES
    kinds = [get_args(rule.model_fields["kind"].annotation) for rule in RULES]
    assert all(len(kind) == 1 for kind in kinds) and len(set(kinds)) == len(RULES)


@pytest.mark.parametrize("name", list(records.PAGES))
def test_readme_shows_the_measured_results(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"<!-- results:{name} -->" in readme
    assert records.with_table(readme, name) == readme
    shown = records.table(name)
    assert shown.count("|") > 15 and shown.splitlines()[1].startswith("|---")
    monkeypatch.setattr(records, "table_of", lambda page: "| rule | std |\n|---|---|\n| x | 9 |\n")
    assert records.with_table(readme, name) != readme


def test_readme_shows_chosen_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "page.md"
    page.write_text("# x\n\n| rule | a % | other |\n|---|---|---|\n| r | 1 | 2 |\n\ntext\n")
    monkeypatch.setitem(records.PAGES, "x", (page, ("rule", "%")))
    assert records.table("x") == "| rule | a % |\n|---|---|\n| r | 1 |\n"
