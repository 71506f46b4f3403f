"""The README shows the results that were measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import records
from tests.docs.pages import ROOT


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
