"""Results files: what was run, on what, and the raw numbers."""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
from pathlib import Path
from typing import Any

from orchestrator.version import code_version

RESULTS = Path(__file__).parent / "results"


def environment() -> dict[str, Any]:
    """The command, the code version, the packages and the processor."""
    return {
        "command": shlex.join(["python", "-m", *_module(), *sys.argv[1:]]),
        "code": code_version(),
        "processor": _processor(),
        "cores": os.cpu_count(),
    }


def _module() -> list[str]:
    spec = sys.modules["__main__"].__spec__
    return [spec.name] if spec else [Path(sys.argv[0]).name]


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def write(name: str, record: dict[str, Any], page: str) -> None:
    """Write `results/<name>.json` and the Markdown page made of it."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    (RESULTS / f"{name}.md").write_text(page, encoding="utf-8")
    print(page)
