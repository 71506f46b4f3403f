"""What does not fit the machine is refused before its memory is asked for."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest
import torch
from torch import nn

from learning import memory
from learning.data.settings import ReversalSettings
from learning.data.tokens import make_reversal
from learning.errors import UserError
from learning.learners.feedback import FeedbackModule, FeedbackSettings
from learning.memory import building, check_fits, machine_bytes
from learning.networks import GPTSettings, MLPSettings, ViTSettings, build_network
from learning.networks.build import NetworkSettings
from learning.objectives.latents import make_family
from learning.units import units_of
from orchestrator.partition import partition
from orchestrator.profile import measure_units, profile_units

MEBI = 2**20


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of 64 MiB."""
    monkeypatch.setattr(memory, "machine_bytes", lambda: 64 * MEBI)


def test_the_memory_of_this_machine() -> None:
    assert 64 * MEBI < machine_bytes() < 2**60


@pytest.mark.usefixtures("small")
def test_half_of_the_memory_may_be_taken() -> None:
    check_fits(32 * MEBI, "it", "less")
    with pytest.raises(UserError) as caught:
        check_fits(32 * MEBI + 1, "it", "take less")
    assert str(caught.value) == (
        "it would take 32.0 MiB or more, and this machine has 64.0 MiB, half of them for it: take "
        "less"
    )


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("settings", "shape", "classes"),
    [
        (MLPSettings(widths=(1_000_000,)), (1, 8, 8), 10),
        (MLPSettings(widths=(100,) * 1_000), (1, 8, 8), 10),  # each of them is small
        (MLPSettings(), (1, 8, 8), 10_000_000),
        (ViTSettings(width=3 * 333_333), (1, 8, 8), 10),
        (GPTSettings(), (1_000_000,), 10),
        (GPTSettings(positions="learned"), (1_000_000,), 10),
        (GPTSettings(subspace=8), (8,), 1_000_000),
    ],
)
def test_networks_that_are_too_large(
    settings: NetworkSettings, shape: tuple[int, ...], classes: int
) -> None:
    with pytest.raises(UserError, match=r"GiB or more|MiB or more|TiB or more|cannot be built"):
        build_network(settings, shape, classes, 0, tokens=len(shape) == 1)
    hooks = torch.nn.modules.module
    assert not hooks._global_parameter_registration_hooks
    assert not hooks._global_buffer_registration_hooks


def test_a_network_that_fits_is_built_as_without_the_guard() -> None:
    settings = MLPSettings(widths=(8,))
    torch.manual_seed(3)
    plain = settings.build((4,), 2)
    guarded = build_network(settings, (4,), 2, seed=3)
    for name, tensor in plain.state_dict().items():
        assert torch.equal(tensor, guarded.state_dict()[name])


@pytest.mark.parametrize(
    "fails",
    [
        lambda: nn.Linear(2**62, 2**62),
        lambda: nn.Linear(10**30, 1),
        lambda: _deep(sys.getrecursionlimit()),
        lambda: 1 / 0,
        lambda: 10.0**400,
        lambda: _raise(MemoryError()),
    ],
)
def test_whatever_building_raises_is_one_sentence(fails: Callable[[], object]) -> None:
    said = r"^it cannot be built \(.+\): mend it$"
    with pytest.raises(UserError, match=said) as caught, building("it", "mend it"):
        fails()
    assert len(str(caught.value)) < 300


def _deep(levels: int) -> int:
    return _deep(levels - 1) + 1 if levels else 0


def _raise(error: BaseException) -> None:
    raise error


@pytest.mark.usefixtures("small")
def test_a_batch_whose_activations_do_not_fit() -> None:
    model = nn.Sequential(nn.Linear(4, 1000), nn.Tanh(), nn.Linear(1000, 2))
    for run in (measure_units, profile_units):
        run(units_of(model), torch.zeros(32, 4))
        with pytest.raises(UserError, match="the units up to '0' keep for a batch of 10,000 would"):
            run(units_of(model), torch.zeros(10_000, 4))


@pytest.mark.usefixtures("small")
def test_activations_of_many_small_units_add_up() -> None:
    model = nn.Sequential(*(nn.Linear(64, 64) for _ in range(100)))
    measure_units(units_of(model), torch.zeros(16, 64))
    with pytest.raises(UserError, match="up to '[0-9]{2}' keep for a batch of 2,048 would take 3"):
        measure_units(units_of(model), torch.zeros(2_048, 64))


@pytest.mark.usefixtures("small")
def test_tables_and_rows_that_do_not_fit() -> None:
    family = make_family("gaussian", 4)
    with pytest.raises(UserError, match="for 10,000 classes would take"):
        FeedbackModule(FeedbackSettings(), classes=10_000, size=None, units=1, family=family)
    with pytest.raises(UserError, match="of memory, but .* are free"):
        make_reversal(ReversalSettings(rows=10_000_000, length=1_000_000, symbols=10_000_000))


def test_cuts_that_would_take_minutes() -> None:
    with pytest.raises(UserError, match="500 of 1000 units takes too long to balance: name"):
        partition([1.0] * 1000, 500)
    assert sum(partition([1.0] * 60, 30)) == 60
