"""One run with kills and the same without them, and what the two come to."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks import killer
from benchmarks.deadline import deadline
from benchmarks.killer import Kill, Killer, moments
from benchmarks.survival import WARMUP, State, Watch, calibrated, same_bits, trained
from benchmarks.workloads import Workload
from orchestrator.chain import Transport
from orchestrator.events import Metrics
from orchestrator.incidents import Incident

MARGIN = 1.05  # the machine may be faster later than in the calibration
START_SECONDS, KILL_SECONDS = 90.0, 30.0  # at most for a start, and for a loss


@dataclass(kw_only=True)
class Punished(Watch):
    """Watches a run that is punished from the end of its warm-up on.

    Attributes:
        replace: starts a node in the place of a lost one.
    """

    killer: Killer
    replace: Callable[[], object] | None = None

    def stepped(self, step: int, metrics: Metrics) -> None:
        super().stepped(step, metrics)
        if step == WARMUP - 1:
            self.killer.start()

    def recovered(self, incident: Incident) -> None:
        super().recovered(incident)
        if self.replace is not None:
            self.replace()


@dataclass(frozen=True)
class Reference:
    """A run without kills: its steps, its rate in steps a second, its state at the end."""

    workload: Workload
    transport: Transport
    every: int
    steps: int
    rate: float
    state: State


def undisturbed(
    workload: Workload, transport: Transport, every: int, seconds: float, calibration: float
) -> Reference:
    """A run of about so many seconds, and rather more.

    Args:
        every: steps between snapshots.
        calibration: seconds of the run that tells how many steps that are.

    Raises:
        TimeoutError: when one of the two does not end.
    """
    with deadline(START_SECONDS + 3 * calibration, lambda: "calibrating"):
        rate = calibrated(workload, calibration, every=every, transport=transport)
    steps = WARMUP + math.ceil(MARGIN * seconds * rate)
    watch = Watch()
    limit = START_SECONDS + 3 * seconds
    with deadline(limit, lambda: f"training without kills, step {len(watch.times)} of {steps}"):
        state = trained(workload, steps, [watch], every=every, transport=transport)
    return Reference(workload, transport, every, steps, watch.rate(), state)


def punish(
    reference: Reference,
    kills: int,
    between: float,
    seed: int,
    replace: Callable[[], object] | None = None,
) -> dict[str, Any]:
    """The same run with kills, the mean of so many seconds between them.

    Args:
        replace: kill nodes instead of actors, and call this after each.

    Raises:
        TimeoutError: when it does not end.
    """
    victims = killer.actors if replace is None else killer.nodes
    punisher = Killer(moments(kills, between, seed), seed, victims)
    watch = Punished(killer=punisher, replace=replace)

    def doing() -> str:
        return (
            f"training with kills, step {len(watch.times)} of {reference.steps}, "
            f"{len(punisher.kills)} of {kills} kills, {len(watch.incidents)} incidents"
        )

    limit = START_SECONDS + 3 * reference.steps / reference.rate + kills * KILL_SECONDS
    try:
        with deadline(limit, doing):
            state = trained(
                reference.workload,
                reference.steps,
                [watch],
                every=reference.every,
                transport=reference.transport,
                settings={"engine.recovery.max_failures": 10 * kills},
            )
    finally:
        punisher.stop()
    return {
        "every": reference.every,
        "between": between,
        "planned": kills,
        "steps": reference.steps,
        "rate_without_kills": reference.rate,
        **figures(watch, punisher.began, punisher.kills, kills * between, reference.rate),
        "same_bits": same_bits(reference.state, state),
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
