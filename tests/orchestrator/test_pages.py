"""Tables of Markdown pages."""

from __future__ import annotations

from orchestrator.pages import table


def test_a_table() -> None:
    assert table(("", "a|b"), [("x|y", 1), ("", 0.5)]) == [
        "|  | a\\|b |",
        "|---|---|",
        "| x\\|y | 1 |",
        "|  | 0.5 |",
    ]
    assert table(("a",), []) == ["| a |", "|---|"]
