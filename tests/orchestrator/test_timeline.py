"""Spans are read, measured and drawn; expected numbers are worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from actors.operations import Kind
from learning.errors import UserError
from orchestrator.timeline import _STYLES, draw, step_colour, training_window
from orchestrator.trace import (
    ActorSpan,
    actors_of,
    block_of,
    concurrency,
    idle_shares,
    read_spans,
    write_trace,
)

T0 = 1_700_000_000_000_000_000


def _span(
    actor: str, kind: str, step: int, start: int, end: int, waited: int = 0, shard: int = 0
) -> ActorSpan:
    """Make a span with times in milliseconds."""
    ms = 1_000_000
    return ActorSpan(actor, kind, step, shard, T0 + start * ms, T0 + end * ms, waited * ms)


def _pipeline(steps: int, test_at: int | None = None) -> list[ActorSpan]:
    """Two blocks and a feedback module; block 2 runs 10 ms behind; an evaluation before a step."""
    spans, now = [], 0
    for step in range(steps):
        if step == test_at:
            spans += [_span("block1", "E", step, now, now + 30)]
            now += 30
        spans += [
            _span("block1", "F", step, now, now + 8),
            _span("block1", "U", step, now + 8, now + 10),
            _span("block2", "F", step, now, now + 18, waited=10),
            _span("block2", "U", step, now + 18, now + 20),
            _span("feedback1", "B", step, now, now + 4),
        ]
        now += 20
    return spans


def _write(path: Path, spans: list[ActorSpan], tail: str = "") -> Path:
    path.write_text("".join(json.dumps(s._asdict()) + "\n" for s in spans) + tail)
    return path


def test_spans_survive_the_file(tmp_path: Path) -> None:
    spans = _pipeline(2)
    assert read_spans(_write(tmp_path / "spans.jsonl", spans)) == spans


@pytest.mark.parametrize("tail", ['{"actor": "block1", "ki', '{"actor": "bl\u00e9', "{"])
def test_torn_last_line_is_left_out(tmp_path: Path, tail: str) -> None:
    path = _write(tmp_path / "spans.jsonl", _pipeline(1), tail)
    path.write_bytes(path.read_bytes()[: -1 if tail.endswith("\u00e9") else None])
    assert read_spans(path) == _pipeline(1)


def test_last_line_without_line_feed_is_left_out(tmp_path: Path) -> None:
    """As a resumed run cuts it off: a whole number may be the half of a longer one."""
    path = _write(tmp_path / "spans.jsonl", _pipeline(1))
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    assert read_spans(path) == _pipeline(1)[:-1]


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("{", "Expecting"),
        ("", "Expecting"),
        ("[1]", "not a record"),
        ('{"actor": "block1"}', "keys"),
        (json.dumps({**_span("block1", "F", 0, 0, 1)._asdict(), "step": "0"}), "not a record"),
        (json.dumps({**_span("block1", "F", 0, 0, 1)._asdict(), "ended": "0"}), "ended is '0'"),
        (json.dumps({**_span("block1", "F", 0, 0, 1)._asdict(), "shard": True}), "shard is True"),
        (json.dumps({**_span("block1", "F", 0, 0, 1)._asdict(), "kind": "Z"}), "'Z' is none of"),
    ],
)
def test_other_damage_is_reported_with_its_line(tmp_path: Path, line: str, what: str) -> None:
    path = _write(tmp_path / "spans.jsonl", [_span("block1", "F", 0, 0, 1)], line + "\n")
    with pytest.raises(UserError, match=f"is damaged in line 2 \\(.*{what}"):
        read_spans(path)
    with pytest.raises(UserError, match="No such file"):
        read_spans(tmp_path / "missing.jsonl")


def test_idle_shares_by_hand() -> None:
    spans = [
        _span("block2", "F", 0, 0, 60, waited=40),
        _span("source", "batch", 0, 0, 10),
        _span("block1", "F", 0, 10, 40),
        _span("block1", "U", 0, 40, 100),
    ]
    # 100 ms in all: the source works 10, block 1 works 90, block 2 works 60 - 40.
    shares = idle_shares(spans)
    assert list(shares) == ["source", "block1", "block2"]
    assert shares == pytest.approx({"source": 0.9, "block1": 0.1, "block2": 0.8})
    assert idle_shares([]) == {}


def test_concurrency_by_hand() -> None:
    spans = [
        _span("block1", "F", 5, 0, 20),
        _span("block1", "F", 8, 20, 60),
        _span("block2", "F", 4, 0, 30, waited=10),  # works 10..30, beside steps 5 and 8
        _span("block3", "F", 1, 50, 70),  # works 50..70, beside step 8 during 50..60
        _span("block2", "F", 0, 70, 80),  # touches block 3 only
        _span("feedback1", "B", 30, 0, 100),  # no block, but part of the run's 100 ms
    ]
    # Two at work: 10..30 and 50..60 of 100 ms; step 8 beside step 1.
    assert concurrency(spans) == (pytest.approx(0.3), 7)
    assert concurrency(spans[:2]) == (0.0, 0)
    assert concurrency(spans[-1:]) == (0.0, 0)
    assert concurrency([]) == (0.0, 0)


def test_a_clock_set_back_makes_no_negative_work() -> None:
    back = _span("block1", "F", 0, 10, 5)
    late = _span("block1", "F", 0, 0, 10, waited=12)
    assert (back.worked, late.worked, late.worked_from) == (0, 0, late.ended)
    assert concurrency([back, late, _span("block2", "F", 3, 0, 20)]) == (0.0, 0)


def test_trace_holds_rows_waits_and_streams(tmp_path: Path) -> None:
    spans = [
        _span("feedback1", "B", 2, 0, 1),
        _span("block2", "F", 2, 0, 30, waited=20, shard=1),
        _span("block1", "F", 2, 10, 20, shard=1),
        _span("block1", "F", 3, 20, 24, shard=1),
        _span("block10", "E", 2, 30, 31),
        _span("block3", "F", 2, 30, 31, shard=0),  # another shard: nothing flows into it
    ]
    write_trace(spans, tmp_path / "trace.json")
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    names = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name"}
    assert list(names.values()) == ["block1", "block2", "block3", "block10", "feedback1"]
    orders = {e["tid"]: e["args"]["sort_index"] for e in events if e["name"] == "thread_sort_index"}
    assert sorted(names, key=lambda tid: orders[tid]) == list(names)
    assert [e["args"] for e in events if e["name"] == "process_name"] == [{"name": "blocklocal"}]

    rows = {name: tid for tid, name in names.items()}
    bars = [e for e in events if e["ph"] == "X" and e["tid"] == rows["block2"]]
    assert [(e["cat"], e["ts"], e["dur"]) for e in bars] == [
        ("wait", 0.0, 20_000.0),
        ("training", 20_000.0, 10_000.0),
    ]
    assert all(e["args"] == {"step": 2, "shard": 1, "kind": "F"} for e in bars)
    assert [e["cat"] for e in events if e["ph"] == "X" and e["tid"] == rows["block10"]] == [
        "evaluation"
    ]

    begin, end = [e for e in events if e["ph"] in "sf"]
    assert (begin["ph"], begin["tid"], begin["ts"]) == ("s", rows["block1"], 15_000.0)
    assert (end["ph"], end["tid"], end["ts"], end["bp"]) == ("f", rows["block2"], 25_000.0, "e")
    assert begin["id"] == end["id"]
    assert len([e for e in events if e["ph"] == "X"]) == len(spans) + 1


def test_repeated_step_flows_from_its_own_sender(tmp_path: Path) -> None:
    # Killed after block 1 had sent step 7; the resumed run does the step again in both blocks.
    spans = [
        _span("block1", "F", 7, 0, 10),
        _span("block1", "F", 7, 100, 110),
        _span("block2", "F", 7, 110, 120),
    ]
    write_trace(spans, tmp_path / "trace.json")
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert [e["ts"] for e in events if e["ph"] in "sf"] == [105_000.0, 115_000.0]


def test_empty_trace_is_json(tmp_path: Path) -> None:
    write_trace([], tmp_path / "trace.json")
    assert json.loads((tmp_path / "trace.json").read_text())["traceEvents"]


def test_every_kind_of_operation_can_be_drawn() -> None:
    assert set(_STYLES) == set(Kind)


def test_actors_stand_lane_by_lane() -> None:
    names = ["block2.lane2", "feedback1", "block10", "source", "block1.lane2", "block2", "other"]
    spans = [_span(name, "F", 0, 0, 1) for name in names]
    assert actors_of(spans) == [
        "source",
        "block2",
        "block10",
        "feedback1",
        "other",
        "block1.lane2",
        "block2.lane2",
    ]
    assert [block_of(name) for name in names] == [2, None, 10, None, 1, 2, None]


def test_window_is_six_steps_in_the_middle() -> None:
    # Steps begin at 0, 20, .. 380 ms and end at 400: the middle six are 140..260.
    assert training_window(_pipeline(20)) == pytest.approx((0.14, 0.26))
    assert training_window(_pipeline(3)) == pytest.approx((0.0, 0.06))


def test_window_keeps_clear_of_an_evaluation() -> None:
    # Evaluated at 200..230 ms of 430: steps begin at .., 180, 230, .., so that 60..180 and
    # 230..350 are free, and the middle of the latter is nearer to 215.
    assert training_window(_pipeline(20, test_at=10)) == pytest.approx((0.23, 0.35))
    # An evaluation from the end of the middle window on is not in it, one 1 ms earlier is.
    spans = _pipeline(20)
    after, inside = _span("block3", "E", 9, 260, 262), _span("block3", "E", 9, 259, 261)
    assert training_window([*spans, after]) == pytest.approx((0.14, 0.26))
    assert training_window([*spans, inside]) == pytest.approx((0.12, 0.24))
    # No room on either side: it is shown after all.
    assert training_window(_pipeline(7, test_at=4)) == pytest.approx((0.0, 0.15))


def test_window_without_training_is_the_run() -> None:
    assert training_window([_span("block1", "E", 0, 5, 25)]) == pytest.approx((0.0, 0.02))


def _share(image: np.ndarray, colour: str) -> float:
    return float((np.abs(image[..., :3] - np.array(to_rgb(colour))).max(-1) < 0.01).mean())


def test_picture_shows_the_window_in_colours_of_steps(tmp_path: Path) -> None:
    spans = _pipeline(8)
    draw(spans, tmp_path / "a.png", window=(0.04, 0.08))  # steps 2 and 3
    image = imread(tmp_path / "a.png")
    assert _share(image, step_colour(2)) > 0.02
    assert _share(image, step_colour(3)) > 0.02
    assert _share(image, step_colour(2, white=0.55)) > 0.005  # the table of step 2
    assert _share(image, step_colour(1)) == _share(image, step_colour(4)) == 0
    draw(spans, tmp_path / "b.png")  # steps 1 to 6 are the middle, 0 and 7 are not
    image = imread(tmp_path / "b.png")
    assert all(_share(image, step_colour(step)) > 0.005 for step in range(1, 7))
    assert _share(image, step_colour(7)) == 0


def test_nothing_to_draw_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="0 spans"):
        draw([], tmp_path / "a.png")
    for window in ((5.0, 6.0), (0.02, 0.01)):
        with pytest.raises(UserError, match=r"between .* and 0\.04 s"):
            draw(_pipeline(2), tmp_path / "a.png", window=window)
    assert not (tmp_path / "a.png").exists()
