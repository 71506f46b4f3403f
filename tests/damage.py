"""Ways to damage a file: each changes it again and again, and lets the test look at it."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

How = Callable[[Path, list[bytes]], Iterator[None]]
"""Is given the file, and what other files of the directory hold."""


def truncated(path: Path, others: list[bytes]) -> Iterator[None]:
    data = path.read_bytes()
    for at in {0, 1, len(data) // 3, len(data) // 2, len(data) - 2, len(data) - 1}:
        path.write_bytes(data[: max(0, at)])
        yield


def flipped(path: Path, others: list[bytes]) -> Iterator[None]:
    data, chance = path.read_bytes(), random.Random(path.name)
    for _ in range(15):
        changed = bytearray(data)
        for _ in range(chance.choice([1, 1, 1, 5])):
            if changed:
                changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
        path.write_bytes(bytes(changed))
        yield


def swapped(path: Path, others: list[bytes]) -> Iterator[None]:
    for other in others:
        path.write_bytes(other)
        yield


def replaced(path: Path, others: list[bytes]) -> Iterator[None]:
    for content in (
        b"\xff\xfe\x00" * 9, b"\n" * 9, b"null\n", b"[]\n", b"7\n", b'"a"\n', b"{}\n", b"{}\n{}\n",
        b"a: &a [1]\nb: *a\n", b"&a [*a]\n", b"- " * 5000, b"[" * 100_000, b"[" * 900 + b"]" * 900,
        b'{"a":' * 600 + b"1" + b"}" * 600 + b"\n", b'{"step": 1e400, "split": "test"}\n',
        b'{"step": ' + b"9" * 5000 + b"}\n", b'{"step": 1, "split": ["test"]}\n',
        b'{"step": 1, "split": "test", "block1/loss": "low"}\n', b"x" * 500_000 + b"\n",
        b'{"at": 0, "step": 1, "action": "", "steps_lost": 0, "losses": [1]}\n',
        b'{"format": 1, "sha256": "0"}', b"---\n" * 3, b"\x00" * 100,
    ):  # fmt: skip
        path.write_bytes(content)
        yield


def no_file(path: Path, others: list[bytes]) -> Iterator[None]:
    path.unlink()
    yield
    path.unlink(missing_ok=True)  # what grows is made anew
    path.mkdir()
    yield
    path.rmdir()
    os.mkfifo(path)
    yield
    path.unlink()


DAMAGE: tuple[How, ...] = (truncated, flipped, swapped, replaced, no_file)
