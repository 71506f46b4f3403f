"""The queue on disk: order, what a crash leaves, and that nothing is sent twice or lost."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from learning.errors import UserError
from orchestrator import lines
from orchestrator.record_files import RecordError
from tuning import spool as spools
from tuning.spool import Record, Spool

pytestmark = pytest.mark.usefixtures("no_fsync")


def numbered(number: int) -> Record:
    return {"do": "metrics", "number": number}


def numbers(spool: Spool, limit: int = 100) -> list[int]:
    return [record["number"] for record, _ in spool.read(limit)]


def take(spool: Spool, limit: int) -> list[int]:
    """Read up to `limit` records and say that they are sent."""
    records = spool.read(limit)
    if records:
        spool.sent(records[-1][1], len(records))
    return [record["number"] for record, _ in records]


def test_what_is_appended_is_read_in_order_until_it_is_sent(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "q")
    for i in range(5):
        spool.append(numbered(i))
    assert numbers(spool) == numbers(spool) == [0, 1, 2, 3, 4]
    assert numbers(spool, 2) == [0, 1] and spool.waiting == 5
    assert take(spool, 3) == [0, 1, 2] and spool.waiting == 2
    assert numbers(spool) == [3, 4]


def test_another_life_goes_on_where_the_last_was(tmp_path: Path) -> None:
    first = Spool(tmp_path / "q")
    for i in range(5):
        first.append(numbered(i))
    first.names["run a"] = "id"
    take(first, 2)
    first.close()
    second = Spool(tmp_path / "q")
    assert second.waiting == 3 and second.names == {"run a": "id"}
    second.append(numbered(5))
    assert take(second, 100) == [2, 3, 4, 5]
    second.close()
    assert Spool(tmp_path / "q").waiting == 0
    left = sorted(p.name for p in (tmp_path / "q").iterdir())
    assert left == ["000002.jsonl", "lock", "sent.json"]


def test_files_that_are_sent_are_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spools, "SEGMENT_BYTES", 100)
    spool = Spool(tmp_path)
    for i in range(20):
        spool.append(numbered(i))
    files = sorted(tmp_path.glob("0*.jsonl"))
    assert len(files) > 3
    assert [take(spool, 7), take(spool, 7), take(spool, 7)] == [
        list(range(7)), list(range(7, 14)), list(range(14, 20)),
    ]  # fmt: skip
    assert sorted(tmp_path.glob("0*.jsonl")) == files[-1:]
    spool.append(numbered(20))
    assert take(spool, 7) == [20]


@settings(max_examples=30)
@given(st.lists(st.one_of(st.just("put"), st.integers(1, 4), st.just("again")), max_size=30))
def test_any_order_of_events_loses_and_repeats_nothing(
    tmp_path_factory: pytest.TempPathFactory, events: list[str | int]
) -> None:
    path = tmp_path_factory.mktemp("q")
    before, spools.SEGMENT_BYTES = spools.SEGMENT_BYTES, 60
    try:
        spool, put, sent = Spool(path), 0, list[int]()
        for event in events:
            if event == "put":
                spool.append(numbered(put))
                put += 1
            elif event == "again":
                spool._lock.close()  # as a killed process does, and nothing else
                spool = Spool(path)
            else:
                sent += take(spool, int(event))
            assert spool.waiting == put - len(sent)
        assert sent + take(spool, 1000) == list(range(put))
        spool.close()
    finally:
        spools.SEGMENT_BYTES = before


def test_a_killed_process_loses_nothing_but_the_line_it_was_at(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys; from pathlib import Path; from tuning.spool import Spool\n"
        "spool = Spool(Path(sys.argv[1]))\n"
        "for i in range(3): spool.append({'do': 'metrics', 'number': i})\n"
        'spool._file.append(b\'{"do": "metr\')\n'
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], cwd=Path(spools.__file__).parents[1]
    )
    assert done.returncode == -signal.SIGKILL
    spool = Spool(tmp_path)
    spool.append(numbered(3))
    assert spool.waiting == 4 and take(spool, 9) == [0, 1, 2, 3]


def test_one_process_at_a_time(tmp_path: Path) -> None:
    held = Spool(tmp_path)
    with pytest.raises(UserError, match="is in use by a process that still sends it"):
        Spool(tmp_path)
    held.close()
    Spool(tmp_path).close()


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.append(numbered(0))
    spool._file.append(b"[1]\n")
    with pytest.raises(UserError, match=r"000001.jsonl is damaged in line 2 \(not a record\)"):
        spool.read(9)


def test_a_half_written_line_does_not_spoil_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = Spool(tmp_path)
    spool.append(numbered(0))

    def full(descriptor: int, data: bytes) -> None:
        os.write(descriptor, data[:5])
        raise OSError(errno.ENOSPC, "no space left")

    with monkeypatch.context() as patch:
        patch.setattr(lines, "write_all", full)
        with pytest.raises(RecordError, match=r"no space left\): make room"):
            spool.append(numbered(1))
    spool.append(numbered(2))
    assert spool.waiting == 2 and take(spool, 9) == [0, 2]


def test_what_is_refused_is_put_aside_with_its_reason(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.refuse(numbered(1), "too long")
    (line,) = (tmp_path / "refused.jsonl").read_text().splitlines()
    assert json.loads(line) == {"why": "too long", **numbered(1)}


def test_a_directory_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write .*: make it writable"):
        Spool(tmp_path / "file" / "q")
