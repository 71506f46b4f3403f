"""States into and out of the learners of a chain."""

from __future__ import annotations

from collections.abc import Collection

import ray

from orchestrator.chain import Chain
from orchestrator.events import State


def load(chain: Chain, state: State, step: int) -> None:
    """Load a snapshot into all learners; training goes on at `step`."""
    learners = [actor for actor in chain.actors if actor.learns]
    # All mailboxes first: a learner that is loaded sends what was under way.
    chain.call(lambda a: a.handle.clear.remote(), learners)
    # Once for all lanes: Ray would copy the tensors for each call.
    states = {name: ray.put(tensors) for name, tensors in state.items()}
    chain.call(lambda a: a.handle.load.remote(states[a.learner], step), learners)


def finished(chain: Chain) -> dict[str, int]:
    """The step of the last update of each learner that is there, by name."""
    learners = [actor for actor in chain.there() if actor.learns]
    steps = chain.call(lambda a: a.handle.finished.remote(), learners)
    return {actor.name: step for actor, step in zip(learners, steps, strict=True)}


def load_learnt(chain: Chain, names: Collection[str], state: State, done: int) -> None:
    """Load what a snapshot has learnt, without what was under way, into some of the learners.

    Args:
        names: of their actors.
        done: the step of the last update that is in the snapshot.
    """
    learners = [actor for actor in chain.actors if actor.name in names and actor.learns]
    chain.call(lambda a: a.handle.take_learnt.remote(state[a.learner], done), learners)
