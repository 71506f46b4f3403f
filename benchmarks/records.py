"""Results files: what was run, on what, and the raw numbers; their tables in the README.

    python -m benchmarks.records

puts the tables of all committed results into the README.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from pathlib import Path
from typing import Any

from orchestrator.version import code_version, processor

RESULTS = Path(__file__).parent / "results"
README = Path(__file__).parent.parent / "README.md"
COMPARED = ("rule", "%", "perplexity", "std", "gap", "extra FLOPs", "largest block", "back a step")
"""What the README shows of a comparison: columns whose titles hold one of these."""
MEMORY = ("rule", "K", "activations", "gradients", "allocated", "whole process", "all processes")
PAGES = {
    "accuracy": (RESULTS / "cifar10/report.md", COMPARED),
    "eight-blocks": (RESULTS / "cifar10-8-blocks/report.md", COMPARED),
    "shakespeare": (RESULTS / "shakespeare/report.md", COMPARED),
    "reach": (RESULTS / "reach.md", None),
    "throughput": (RESULTS / "throughput.md", None),
    "memory": (RESULTS / "memory.md", MEMORY),
    "time": (RESULTS / "time_to_accuracy.md", None),
    "punisher": (RESULTS / "punisher.md", None),
}
"""The page whose first table stands between the README's markers of that name, and its columns."""


def environment() -> dict[str, Any]:
    """The command, the code version, the packages and the processor."""
    return {
        "command": shlex.join(["python", "-m", *_module(), *sys.argv[1:]]),
        "code": code_version(),
        "processor": processor(),
        "cores": os.cpu_count(),
    }


def _module() -> list[str]:
    spec = sys.modules["__main__"].__spec__
    return [spec.name] if spec else [Path(sys.argv[0]).name]


def footer(environment: dict[str, Any]) -> str:
    """The last line of a page: how and where it was measured."""
    code = environment["code"]
    return (
        f"`{environment['command']}` on {environment['cores']} cores of "
        f"{environment['processor']}, torch {code['torch']}, ray {code['ray']}."
    )


def write(name: str, record: dict[str, Any], page: str, directory: Path = RESULTS) -> None:
    """Write `<name>.json` and the Markdown page made of it; where they are committed, also tables.

    Args:
        directory: made where it does not exist.
    """
    directory.mkdir(parents=True, exist_ok=True)
    _replace(directory / f"{name}.json", json.dumps(record, indent=1) + "\n")
    _replace(directory / f"{name}.md", page)
    if directory == RESULTS:
        update_readme()
    print(page)


def update_readme() -> None:
    """Put the tables of all committed pages into the README."""
    readme = README.read_text(encoding="utf-8")
    for name in PAGES:
        readme = with_table(readme, name)
    _replace(README, readme)


def with_table(readme: str, name: str) -> str:
    """Put a page's table between the README's markers for it."""
    begin, end = f"<!-- results:{name} -->\n", f"<!-- end:{name} -->\n"
    before, _, rest = readme.partition(begin)
    _, _, after = rest.partition(end)
    return f"{before}{begin}\n{table(name)}\n{end}{after}"


def table(name: str) -> str:
    """What the README shows of a page: chosen columns of its first table."""
    path, columns = PAGES[name]
    lines = table_of(path.read_text(encoding="utf-8")).splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    kept = [
        i
        for i, title in enumerate(rows[0])
        if columns is None or any(word in title for word in columns)
    ]
    head, _, *body = ["| " + " | ".join(row[i] for i in kept) + " |\n" for row in rows]
    return head + "|" + "---|" * len(kept) + "\n" + "".join(body)


def table_of(page: str) -> str:
    """The first table of a Markdown page."""
    lines = page.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("|"))
    end = next((i for i in range(start, len(lines)) if not lines[i].startswith("|")), len(lines))
    return "".join(f"{line}\n" for line in lines[start:end])


def _replace(path: Path, text: str) -> None:
    """Write a file whole or not at all: it may be hours of work."""
    new = path.with_name(f".{path.name}.{os.getpid()}")
    new.write_text(text, encoding="utf-8")
    os.replace(new, path)


if __name__ == "__main__":
    update_readme()
