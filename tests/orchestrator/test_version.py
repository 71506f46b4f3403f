"""The version of the code is that of the checkout it is tracked in, or none."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from orchestrator.version import code_version


def _git(directory: Path, *arguments: str) -> str:
    names = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    command = ["git", "-C", str(directory), *names, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_code_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def commit(path: Path) -> tuple[object, object]:
        version = code_version(path)
        json.dumps(version, allow_nan=False)
        return version["git_commit"], version["git_dirty"]

    source = tmp_path / "repo" / "a.py"
    source.parent.mkdir()
    source.touch()
    assert commit(source) == (None, None)  # no checkout
    _git(source.parent, "init")
    assert commit(source) == (None, None)  # not tracked
    _git(source.parent, "add", "a.py")
    assert commit(source) == (None, None)  # no commit yet
    _git(source.parent, "commit", "-m", "a")
    head = _git(source.parent, "rev-parse", "HEAD")
    assert len(head) == 40 and commit(source) == (head, False)
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    assert commit(source) == (head, False)
    monkeypatch.delenv("GIT_DIR")
    source.write_text("1")
    assert commit(source) == (head, True)
    installed = source.parent / "site-packages" / "b.py"
    installed.parent.mkdir()
    installed.touch()
    assert commit(installed) == (None, None)  # inside a checkout, but not of it
    monkeypatch.setenv("PATH", "")
    version = code_version(source)
    assert version["git_commit"] is None and version["torch"] and version["ray"]
    assert version["cpu_count"] > 0 and isinstance(version["gpus"], list)
