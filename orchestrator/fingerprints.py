"""What decides the bits of a run, as its records and the manifest of every checkpoint tell it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from learning.fingerprints import tensors_fingerprint
from learning.settings import Settings
from orchestrator.tensors import State

NAME = "fingerprints.json"
"""Their file in the directory of a run."""


class Fingerprints(Settings):
    """What a run was made of.

    Attributes:
        data: by part of the data, `learning.fingerprints.data_fingerprint`.
        plan: `Plan.hash`.
        units: by name of the unit, `learning.fingerprints.module_fingerprint`.
        configuration: the settings that decide the bits, by dotted key.
        tensors: by learner, of a checkpoint: the set of its tensors.
    """

    data: dict[str, str]
    plan: str
    units: dict[str, str]
    configuration: dict[str, Any]
    tensors: dict[str, str] | None = None

    def of(self, state: State) -> Fingerprints:
        """Those of a checkpoint that holds `state`."""
        return self.model_copy(update={"tensors": tensor_sets(state)})


def tensor_sets(state: State) -> dict[str, str]:
    """The fingerprint of each learner's set of tensors."""
    return {learner: tensors_fingerprint(tensors) for learner, tensors in state.items()}


def differing(made: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The names under which two mappings differ, in the order of the first, then of the second."""
    names = dict.fromkeys([*made, *now])
    return [n for n in names if n not in made or n not in now or made[n] != now[n]]
