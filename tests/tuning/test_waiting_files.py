"""Queues of strangers: no file leaves the machine that is not of the queue's own directory."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from blocklocal import sending
from learning.errors import UserError
from orchestrator.files import sealed
from tests.tuning.reading import client_of
from tuning.tracker import Tracker
from tuning.tracking import TrackingSettings
from tuning.waiting_files import ForeignError, waiting_file


@pytest.fixture
def user(tmp_path: Path) -> Path:
    """A run's directory among what is the user's own."""
    (tmp_path / "secret").write_text("mine")
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets/key").write_text("mine")
    run = tmp_path / "run"
    (run / "tracking").mkdir(parents=True)
    (run / "report.md").write_text("theirs")
    (run / "held").mkdir()
    (run / "held/file").write_text("theirs")
    (run / "link").symlink_to(tmp_path / "secret")
    (run / "dangling").symlink_to(tmp_path / "nothing")
    (run / "linked").symlink_to(tmp_path / "secrets")
    (run / "outer").mkdir()
    (run / "outer/inner").symlink_to("../linked")
    (run / "deep/er").mkdir(parents=True)
    (run / "deep/er/link").symlink_to("/etc/passwd")
    os.mkfifo(run / "pipe")
    return tmp_path


FOREIGN = (
    "/etc/passwd", "../secret", "held/../../secret", "held/../report.md", "..", ".", "", "/",
    "link", "dangling", "linked", "linked/key", "outer", "outer/inner/key", "deep", "pipe", "gone",
    "report.md/x", "a\0b", None, 7, ["report.md"],
)  # fmt: skip


@pytest.mark.parametrize("name", FOREIGN, ids=repr)
def test_a_path_that_leads_elsewhere_is_none(user: Path, name: object) -> None:
    with pytest.raises(ForeignError):
        waiting_file(user / "run", name)


@pytest.mark.parametrize("name", ["report.md", "./report.md", "held", "held/file"])
def test_a_file_of_the_directory_is_one(user: Path, name: str) -> None:
    assert waiting_file(user / "run", name) == user / "run" / name


def test_a_run_below_a_link_has_files(user: Path) -> None:
    """What leads to the run is the user's own, such as a home on another disk."""
    (user / "home").symlink_to(user)
    assert waiting_file(user / "home/run", "held/file").read_text() == "theirs"


def test_of_a_strangers_queue_no_file_of_the_user_is_sent(user: Path, place: Path) -> None:
    queue, names = place / "run/tracking", [n for n in FOREIGN if isinstance(n, str)]
    tracker = Tracker(TrackingSettings(), place, queue, {}, {})
    assert tracker._courier is not None
    for name in (*names, "report.md"):
        tracker._courier.spool.append(
            {"do": "artifact", "run": "run", "path": name, "directory": None}
        )
    for name in names:
        tracker._courier.spool.append(
            {"do": "model", "run": "run", "path": name, "step": 0, "id": "0"}
        )
    tracker._courier.spool._lock.close()  # as a killed process does
    sent, refused = sending.send(place / "run", None)
    assert refused is not None and refused == queue / "refused.jsonl" and sent == 2 + 2 * len(names)
    assert len(refused.read_text().splitlines()) == 2 * len(names)
    run_id = json.loads((queue / "sent.json").read_text())["names"]["run run"]
    assert [f.path for f in client_of(place).list_artifacts(run_id)] == ["report.md"]
    assert not [
        p for p in (place / "mlartifacts").rglob("*") if p.name != "report.md" and p.is_file()
    ]


def sent_json(**about: Any) -> bytes:
    told = {"uri": None, "experiment": None, "directory": None, "first": "run", **about}
    return sealed({"segment": 1, "offset": 0, "names": {}, "about": told})


def test_what_lies_beside_a_queue_that_is_by_itself_is_not_its_own(user: Path) -> None:
    (user / "run/tracking/sent.json").write_bytes(sent_json())
    shutil.move(user / "run/tracking", user / "tracking")
    with pytest.raises(UserError, match="is not in the directory of its run or sweep"):
        sending.send(user / "tracking", None)
    (user / "run/config.yaml").write_text("{}")
    shutil.move(user / "tracking", user / "run/tracking")
    assert sending.send(user / "run/tracking", None) == (0, None)


@pytest.mark.parametrize(
    ("about", "uri"),
    [
        ({"uri": ""}, None),
        ({"uri": "a\0b"}, None),
        ({"experiment": "x" * 9999}, None),
        ({}, "a\nb"),
    ],
    ids=["empty", "zero", "long", "of the command line"],
)
def test_an_mlflow_that_is_none_is_one_sentence(
    user: Path, about: dict[str, Any], uri: str | None
) -> None:
    queue = user / "run/tracking"
    (queue / "sent.json").write_bytes(sent_json(**about))
    (queue / "000001.jsonl").write_text('{"do": "end"}\n')
    with pytest.raises(UserError, match="name the MLflow by --uri") as caught:
        sending.send(user / "run", uri)
    assert len(str(caught.value)) < 500 and "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["segment", "offset"])
def test_a_position_beyond_all_files_is_foreign(user: Path, key: str) -> None:
    told = {"segment": 1, "offset": 0, "names": {}, "about": {}, key: 10**30}
    (user / "run/tracking/sent.json").write_bytes(sealed(told))
    with pytest.raises(UserError, match="sent.json is foreign"):
        sending.send(user / "run", None)


def test_a_file_with_a_strange_number_is_not_of_the_queue(user: Path) -> None:
    (user / "run/tracking/sent.json").write_bytes(sent_json())
    for name in ("\u00b2\u00b3", "1", "9" * 200, "\u0663" * 6):  # digits, say some
        (user / f"run/tracking/{name}.jsonl").write_text("{}\n")
    assert sending.send(user / "run", None) == (0, None)
