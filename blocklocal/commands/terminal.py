"""What commands share: the settings among their words, and how they print."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from blocklocal.config import RunConfig, load_config

console = Console()


def say(text: str) -> None:
    """Print as it is: rich would fold long lines and take square brackets for markup."""
    console.print(text, soft_wrap=True, highlight=False, markup=False)


def configuration(words: tuple[str, ...]) -> RunConfig:
    """A YAML file first, if any, then settings."""
    path = Path(words[0]) if words and "=" not in words[0] else None
    return load_config(path, words[1:] if path else words)
