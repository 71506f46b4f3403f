"""The pages of the documentation, and what is in them."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
README, CONTRIBUTING = ROOT / "README.md", ROOT / "CONTRIBUTING.md"
RESULTS = ROOT / "benchmarks/results"
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *RESULTS.rglob("*.md")])
QUICK = {
    "training.steps": 2,
    "training.batch": 16,
    "engine.kind": "sequential",
    "engine.resources.threads": 1,
    "tracking.enabled": False,
}
"""Settings of a run that ends at once."""


def code_blocks(page: Path, language: str) -> list[str]:
    """The fenced code blocks of a page in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
