"""Commands that would harm or misread a run are refused, and the run stays as it is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from blocklocal import cli
from orchestrator.losses import ActorLostError
from tests.blocklocal.helpers import SMALL, listing, refused

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a short run under the rule `local`."""
    path = tmp_path_factory.mktemp("finished") / "run"
    words = [*SMALL, "training.steps=4", "training.evaluate_every=2", f"run.directory={path}"]
    assert cli.main(["train", *words]) == 0
    return path


@pytest.fixture
def untouched(finished: Path) -> Iterator[Path]:
    """Give that run, and see that the test leaves it as it is."""
    before = listing(finished)
    yield finished
    assert listing(finished) == before


def test_a_run_directory_that_exists(capsys: Capture, untouched: Path) -> None:
    said = refused(capsys, "train", *SMALL, f"run.directory={untouched}")
    assert said.startswith(f"run.directory = {untouched} exists and is not an empty directory")


@pytest.mark.parametrize("word", ["rule.kind=backprop", "training.seed=9", "optimizer.lr=1"])
def test_resuming_under_other_mathematics(capsys: Capture, untouched: Path, word: str) -> None:
    said = refused(capsys, "train", "--resume", untouched, word)
    assert said.startswith(f"{untouched} was made with {word.partition('=')[0]} = ")
    assert " and cannot go on with " in said


def test_resuming_what_is_no_run(capsys: Capture, here: Path) -> None:
    said = f"{here} is not a run directory (no config.yaml): choose one that a run has made"
    assert refused(capsys, "train", "--resume", here) == said
    assert "nowhere is not a run directory" in refused(capsys, "eval", "nowhere")
    assert "nowhere is not a run directory" in refused(capsys, "timeline", "nowhere")


def test_a_dry_run_of_resuming(capsys: Capture, untouched: Path) -> None:
    said = refused(capsys, "train", "--resume", untouched, "--dry-run")
    assert said == "--dry-run does not go with --resume: leave one of them out"


def test_unknown_checkpoints_and_splits(capsys: Capture, untouched: Path) -> None:
    for name in ("eval", "export"):
        output = ["out.safetensors"] if name == "export" else []
        said = refused(capsys, name, untouched, *output, "--checkpoint", "77")
        assert said.startswith("there is no checkpoint 77 in ")
        said = refused(capsys, name, untouched, *output, "--checkpoint", "newest")
        assert said == "checkpoint 'newest' is unknown: choose last, best or a step"
    said = refused(capsys, "eval", untouched, "--split", "tset")
    assert said == "split = 'tset' has no rows: use test, validation or train"


def test_existing_outputs_stay(capsys: Capture, here: Path, untouched: Path) -> None:
    (here / "out").write_text("mine")
    assert refused(capsys, "export", untouched, "out").startswith("out exists: ")
    assert refused(capsys, "plan", *SMALL, "--save", "out").startswith("out exists: ")


def test_outputs_into_nowhere(capsys: Capture, untouched: Path) -> None:
    assert refused(capsys, "export", untouched, "no/out").startswith("cannot write no/out (No such")
    assert refused(capsys, "plan", *SMALL, "--save", "no/out").startswith("cannot write no/out (No")


@pytest.mark.parametrize(
    ("words", "named"),
    [(["trian"], "trian"), (["train", "--fast"], "--fast"), (["eval"], "run"), (["export"], "run")],
)
def test_unknown_commands_and_options(capsys: Capture, words: list[str], named: str) -> None:
    assert named in refused(capsys, *words)


PLAN = ("plan", *SMALL)
NAMELESS = ("n" * 300, "d/" * 3000, "a\0b", "a\nb", "\x07\u202e", "\udcff")


@pytest.mark.parametrize("name", NAMELESS, ids=range(len(NAMELESS)))
@pytest.mark.parametrize(
    "words",
    [
        *(
            ["eval"],
            ["export"],
            ["report"],
            ["timeline"],
            ["track"],
            ["compare"],
            ["tune"],
            ["train"],
        ),
        *([name, "--resume"] for name in ("train", "tune")),
        *(
            [*PLAN, "--save"],
            [*PLAN, "--simulate", "--cluster"],
            [*PLAN, "--simulate", "--picture"],
        ),
        *([], ["train", "--checkpoint"], ["eval", "--split"]),
    ],
    ids=lambda words: " ".join(w for w in words if "=" not in w),
)
def test_names_that_no_file_has(capsys: Capture, words: list[str], name: str) -> None:
    said = refused(capsys, *words, name)
    assert len(said) < 500 and said.isprintable()
    if words and words[-1].startswith("--"):
        assert refused(capsys, *words[:-1], f"{words[-1]}={name}") == said
    assert len(refused(capsys, "train", f"--{name}")) < 500


@pytest.mark.parametrize("letters", [101, 250, 255])
def test_a_run_whose_name_leaves_no_room(capsys: Capture, letters: int) -> None:
    """The names of temporary files are longer than that of the run."""
    said = refused(capsys, "train", *SMALL, f"run.name={'n' * letters}")
    assert said.startswith("run.name = 'nnn")
    if letters > 200:
        said = refused(capsys, "train", *SMALL, f"run.directory={'n' * letters}")
        assert "choose another" in said and len(said) < 500


def test_a_lost_actor_is_no_traceback(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    def lose(*_: object) -> None:
        raise ActorLostError("block2 lost an actor: killed")

    monkeypatch.setattr("blocklocal.commands.train.train", lose)
    assert cli.main(["train", *SMALL]) == 1
    said = "blocklocal: block2 lost an actor: killed; go on with --resume\n"
    assert capsys.readouterr().err == said
