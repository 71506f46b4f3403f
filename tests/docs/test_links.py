"""Links resolve; files and targets of make that pages name exist."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.docs.pages import CONTRIBUTING, PAGES, README, ROOT


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
            ["make", "-n", target], cwd=ROOT, capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, done.stderr
