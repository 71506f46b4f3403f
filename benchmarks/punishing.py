"""One run with kills and the same without them, and what the two come to."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks import killer
from benchmarks.deadline import deadline
from benchmarks.killer import Kill, Killer, moments
from benchmarks.survival import MANY, WARMUP, EnoughError, Watch, same_bits, trained
from benchmarks.workloads import Workload
from orchestrator.events import Metrics
from orchestrator.incidents import Incident
from orchestrator.settings import Transport

START_SECONDS, KILL_SECONDS = 90.0, 30.0  # at most for a start, and for a loss


@dataclass(kw_only=True)
class Punished(Watch):
    """Watches a run that is punished from the end of its warm-up on, and ends it.

    It ends after the first snapshot that follows all kills and what they have cost.

    Attributes:
        kills, seconds: how many kills in how much time.
        every: steps between snapshots.
        replace: starts a node in the place of a lost one.
    """

    killer: Killer
    kills: int
    seconds: float
    every: int
    replace: Callable[[], object] | None = None
    _last: int | None = None

    def stepped(self, step: int, metrics: Metrics) -> None:
        super().stepped(step, metrics)
        if step == WARMUP - 1:
            self.killer.start()
        elif self._last is None and self._is_over():
            self._last = step + self.every
        elif self._last is not None and step > self._last:  # its snapshot is written
            raise EnoughError

    def recovered(self, incident: Incident) -> None:
        super().recovered(incident)
        if self.replace is not None:
            self.replace()

    def _is_over(self) -> bool:
        done, now = list(self.killer.kills), self.times[-1]
        if len(done) < self.kills or now < self.killer.began + self.seconds:
            return False
        waiting = any(recovery(kill, self.incidents)["recovery"] is None for kill in done)
        return not waiting or now > done[-1].at + KILL_SECONDS  # it has hit nobody


def punish(
    workload: Workload,
    transport: Transport,
    every: int,
    kills: int,
    between: float,
    seed: int,
    replace: Callable[[], object] | None = None,
) -> dict[str, Any]:
    """A run with kills, as long as these take, and then as many steps without.

    Args:
        every: steps between snapshots.
        between: mean seconds between kills.
        replace: kill nodes instead of actors, and call this after each.

    Raises:
        TimeoutError: when one of the two does not end.
    """
    seconds = kills * between
    punisher = Killer(
        moments(kills, between, seed), seed, killer.actors if replace is None else killer.nodes
    )
    watch = Punished(killer=punisher, kills=kills, seconds=seconds, every=every, replace=replace)

    def doing() -> str:
        return (
            f"training with kills, {len(watch.times)} steps, {len(punisher.kills)} of {kills} "
            f"kills, {len(watch.incidents)} incidents"
        )

    settings = {"engine.recovery.max_failures": 10 * kills}
    try:
        with deadline(START_SECONDS + 2 * seconds + kills * KILL_SECONDS, doing):
            steps, state = trained(
                workload, MANY, [watch], every=every, transport=transport, settings=settings
            )
    finally:
        punisher.stop()
    alone = Watch()
    limit = START_SECONDS + 2 * (watch.times[-1] - watch.times[0])
    with deadline(limit, lambda: f"training without kills, step {len(alone.times)} of {steps}"):
        _, expected = trained(workload, steps, [alone], every=every, transport=transport)
    return {
        "every": every,
        "between": between,
        "planned": kills,
        "steps": steps,
        "rate_without_kills": alone.rate(),
        **figures(watch, punisher.began, punisher.kills, seconds, alone.rate()),
        "same_bits": same_bits(expected, state),
    }


def figures(
    watch: Watch, began: float, kills: Sequence[Kill], seconds: float, rate: float
) -> dict[str, Any]:
    """What a punished run has come to; times in it are seconds since `began`.

    Args:
        began: Unix seconds from which it was punished, for so many seconds.
        rate: steps a second without kills.
    """
    over = [at for at, incident in watch.incidents if "replaying" in incident.seconds]
    # What the last kill costs after the others' time counts; the steps after that do not.
    until = min(max([began + seconds, *over]), watch.times[-1])
    told = [t - began for t in watch.times if began < t <= until]
    by_second = [0] * (math.floor(until - began) + 1)
    for t in told:
        by_second[math.floor(t)] += 1
    return {
        "seconds": until - began,
        "new_steps": len(told),
        "goodput": len(told) / (until - began) / rate,
        "kills": [
            {**asdict(kill), "at": kill.at - began, **recovery(kill, watch.incidents)}
            for kill in kills
        ],
        "incidents": [
            {**incident.record(), "over": at - began} for at, incident in watch.incidents
        ],
        "new_steps_by_second": by_second,
    }


def recovery(kill: Kill, incidents: Sequence[tuple[float, Incident]]) -> dict[str, Any]:
    """Seconds from a kill to the next new step, in all and by phase.

    Args:
        incidents: with the Unix seconds at which each was over, in order.

    Returns:
        `recovery`, None where nothing was lost with it, and `phases`, of which `noticing` begins
        with the death; no phases for a kill in the middle of another's recovery.
    """

    def is_of_it(over: float, incident: Incident) -> bool:
        named = any(loss.process in kill.processes for loss in incident.losses)
        return named or incident.at <= kill.at <= over

    since = [i for i, (over, incident) in enumerate(incidents) if is_of_it(over, incident)]
    # One that was overtaken by the next loss is made up for together with that.
    later = incidents[since[0] :] if since else []
    done = [over for over, incident in later if "replaying" in incident.seconds]
    if not done:
        return {"recovery": None, "phases": {}}
    _, incident = later[0]
    alone = kill.at <= incident.at and "replaying" in incident.seconds
    phases = {**incident.seconds, "noticing": incident.at - kill.at} if alone else {}
    return {"recovery": done[0] - kill.at, "phases": phases}
