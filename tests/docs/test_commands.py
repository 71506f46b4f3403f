"""The commands of the README run, as do the studies and sweeps of pages."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from blocklocal import cli
from blocklocal.compare.study import Study
from blocklocal.setting_models import models_in
from blocklocal.sweep_checks import check_points, check_values
from blocklocal.sweep_file import SweepFile
from tests.docs.pages import QUICK, README, ROOT, code_blocks
from tuning.searchers import known_points
from tuning.settings import SchedulerSettings, SearcherSettings


def commands() -> list[str]:
    """The `blocklocal` lines of README's code blocks, in their order."""
    lines = "\n".join(code_blocks(README, "sh")).splitlines()
    return [line.strip() for line in lines if line.strip().startswith("blocklocal ")]


def test_readme_commands_parse() -> None:
    found = {shlex.split(line)[1] for line in commands()}
    assert found == {
        "train",
        "eval",
        "export",
        "plan",
        "report",
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
    assert (directory / "runs/first/curves.png").is_file()
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
