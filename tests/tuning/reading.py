"""Reading back what a tracker wrote, through an MLflow client of its own."""

from __future__ import annotations

from pathlib import Path

from mlflow.tracking import MlflowClient

from tuning.tracker import Tracker

SEND = MlflowClient.log_batch


def client_of(place: Path) -> MlflowClient:
    return MlflowClient(tracking_uri=f"sqlite:///{place}/mlflow.db")


def all_sent(tracker: Tracker) -> None:
    """Wait until the queue is empty."""
    sender = tracker._courier
    assert sender is not None
    with sender._state:
        assert sender._state.wait_for(lambda: not sender.spool.waiting, 300)


def history(place: Path, run_id: str | None, name: str) -> list[tuple[int, float]]:
    assert run_id is not None
    return [(m.step, m.value) for m in client_of(place).get_metric_history(run_id, name)]
