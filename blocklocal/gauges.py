"""Metrics for operators: what a run does, in Ray's own metrics, for Prometheus and Grafana.

docs/operations.md lists them and docs/dashboards/blocklocal.json draws them. They are written by
the driver a few times a minute, when an actor has reported a chunk: steps only count.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

from ray.util.metrics import Counter, Gauge

from actors.operations import Span
from orchestrator.events import Changed, Metrics
from orchestrator.incidents import Incident
from orchestrator.readings import Reading, Readings
from orchestrator.trainer import Observer

EVERY_SECONDS = 5.0

GAUGES = {
    "blocklocal_step": ("steps that are finished, with those before a resume", ()),
    "blocklocal_lanes": ("copies of the chain of blocks", ()),
    "blocklocal_steps_apart": ("steps between the first and the last block at work", ()),
    "blocklocal_idle_share": ("share of the time in which an actor does not work", ("actor",)),
    "blocklocal_in_flight_bytes": ("bytes sent by a block and not taken yet", ("actor",)),
    "blocklocal_loss": ("training loss of the last step", ("learner",)),
}
COUNTERS = {
    "blocklocal_steps": ("steps finished by this process", ()),
    "blocklocal_sent_bytes": ("bytes of messages sent", ("actor",)),
    "blocklocal_incidents": ("losses of actors, nodes or checkpoints", ("kind",)),
    "blocklocal_steps_again": ("finished steps that a loss took back", ()),
}
"""Name -> what it is, and its tags besides `run`."""


class RayMetrics(Observer):
    """Publishes gauges and counters of a run, tagged with its name.

    Args:
        run: its name.
        step: at which it begins.
        lanes: how many there are at first.
        told: is told each reading of the actors as well, with the step.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        run: str,
        step: int,
        lanes: int,
        told: Callable[[int, Reading], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._gauges = {n: Gauge(n, text, ("run", *tags)) for n, (text, tags) in GAUGES.items()}
        self._counters = {
            n: Counter(n, text, ("run", *tags)) for n, (text, tags) in COUNTERS.items()
        }
        for metric in (*self._gauges.values(), *self._counters.values()):
            metric.set_default_tags({"run": run})
        self._told, self._clock, self._published = told, clock, clock()
        self._readings = Readings()
        self._step, self._steps, self._lanes = step, 0, lanes
        self._spans: Sequence[Span] = ()
        self._sent: dict[str, int] = {}
        self._shown: dict[str, set[str]] = {}
        self._metrics: Metrics = {}
        self.publish()

    def stepped(self, step: int, metrics: Metrics) -> None:
        self._step, self._metrics = step + 1, metrics
        self._steps += 1

    def worked(self, actor: str, spans: Sequence[Span]) -> None:
        self._spans = spans

    def sent(self, actor: str, size: int) -> None:
        self._readings.note(actor, self._spans, size)
        self._sent[actor] = self._sent.get(actor, 0) + size
        if self._clock() - self._published >= EVERY_SECONDS:
            self.publish()

    def recovered(self, incident: Incident) -> None:
        kinds = [loss.kind for loss in incident.losses] or ["connection"]
        for kind in kinds:
            self._counters["blocklocal_incidents"].inc(1, {"kind": kind})
        self._count("blocklocal_steps_again", incident.steps_lost)
        if not incident.instead and not incident.ended:
            self._lanes = incident.lanes
        self._readings.forget()

    def changed(self, change: Changed) -> None:
        self._lanes = change.lanes
        self._readings.forget()

    def publish(self) -> None:
        """Write all numbers as they are."""
        self._published = self._clock()
        reading = self._readings.read()
        self._set("blocklocal_step", self._step)
        self._set("blocklocal_lanes", self._lanes)
        self._set("blocklocal_steps_apart", reading.steps_apart)
        for name, values in (
            ("blocklocal_idle_share", reading.idle),
            ("blocklocal_in_flight_bytes", reading.in_flight),
        ):
            # Prometheus would go on with the last value of an actor that has left: none from here.
            for gone in self._shown.get(name, set()) - set(values):
                self._gauges[name].set(math.nan, {"actor": gone})
            self._shown[name] = set(values)
            for actor, value in values.items():
                self._gauges[name].set(value, {"actor": actor})
        for learner, metrics in self._metrics.items():
            if "loss" in metrics:
                self._gauges["blocklocal_loss"].set(metrics["loss"], {"learner": learner})
        self._count("blocklocal_steps", self._steps)
        for actor, size in self._sent.items():
            self._count("blocklocal_sent_bytes", size, {"actor": actor})
        self._steps, self._sent = 0, {}
        if self._told is not None and reading.idle:
            self._told(self._step, reading)

    def _set(self, name: str, value: float) -> None:
        self._gauges[name].set(value)

    def _count(self, name: str, value: float, tags: dict[str, str] | None = None) -> None:
        if value > 0:  # Ray refuses to count nothing
            self._counters[name].inc(value, tags or {})
