"""The token of local clusters is for its user alone, and the environment stays as it was."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from blocklocal.confined import keep_token_private, without_clusters


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def mode(path: Path) -> int:
    return path.lstat().st_mode & 0o777


def test_a_new_token_is_for_its_user_alone(home: Path) -> None:
    before = os.umask(0)
    try:
        keep_token_private()
    finally:
        os.umask(before)
    token = home / ".ray/auth_token"
    text = token.read_text()
    assert len(text) == 64 and int(text, 16)
    assert (mode(token), mode(token.parent)) == (0o600, 0o700)
    keep_token_private()
    assert token.read_text() == text
    assert os.listdir(token.parent) == ["auth_token"]


def test_one_that_is_open_to_all_is_closed(home: Path) -> None:
    (home / ".ray").mkdir()
    token = home / ".ray/auth_token"
    token.write_text("an older one")
    token.chmod(0o644)
    keep_token_private()
    assert (token.read_text(), mode(token)) == ("an older one", 0o600)


def test_what_a_link_points_to_is_not_touched(home: Path) -> None:
    (home / ".ray").mkdir()
    other = home / "other"
    other.write_text("shared")
    other.chmod(0o644)
    (home / ".ray/auth_token").symlink_to(other)
    keep_token_private()
    assert (other.read_text(), mode(other)) == ("shared", 0o644)


@pytest.mark.parametrize(
    ("name", "value"),
    [("RAY_AUTH_MODE", "disabled"), ("RAY_AUTH_TOKEN", "x"), ("RAY_AUTH_TOKEN_PATH", "/else")],
)
def test_whoever_has_another_gets_none(
    name: str, value: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    keep_token_private()
    assert os.listdir(home) == []


def test_the_environment_is_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
    monkeypatch.delenv(name, raising=False)
    with without_clusters():
        assert os.environ[name] == "0"
    assert name not in os.environ
    monkeypatch.setenv(name, "1")
    with without_clusters():
        assert os.environ[name] == "1"  # who says so has a reason
    assert os.environ[name] == "1"
