"""Units: flattening, cutting by name, ownership of tensors, and the original state's names."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from torch import nn

from learning.errors import UserError
from learning.networks import ResNetSettings, build_network
from learning.units import Chain, Unit, check_ownership, split, units_of
from tests.learning.helpers import assert_same_bits


class Doubled(nn.Sequential):
    """A sequential that does more than run its children."""

    def forward(self, x):
        return 2 * super().forward(x)


def nested() -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(
            stem=nn.Linear(3, 4),
            body=nn.Sequential(
                nn.Linear(4, 4),
                nn.Sequential(OrderedDict(norm=nn.BatchNorm1d(4), act=nn.ReLU())),
                Doubled(nn.Linear(4, 4)),
            ),
            bodyguard=nn.Tanh(),
            head=nn.Linear(4, 2),
        )
    )


NAMES = ["stem", "body.0", "body.1.norm", "body.1.act", "body.2", "bodyguard", "head"]


def names(units: list[Unit]) -> list[str]:
    return [unit.name for unit in units]


def test_nested_sequentials_are_opened_and_names_are_paths():
    model = nested()
    units = units_of(model)
    assert names(units) == NAMES
    assert all(model.get_submodule(unit.name) is unit.module for unit in units)


def test_units_in_order_compute_the_network():
    model = nested().eval()
    h = x = torch.randn(5, 3)
    for unit in units_of(model):
        h = unit.module(h)
    assert torch.equal(h, model(x))


def test_a_sequential_with_hooks_is_kept_whole():
    inner = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    inner.register_forward_hook(lambda module, arguments, output: output + 1)
    assert names(units_of(nn.Sequential(inner, nn.ReLU()))) == ["0", "1"]


def in_itself(module):
    module.add_module("again", nn.Sequential(module))
    return module


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Linear(2, 2), "must be an nn.Sequential, not Linear"),
        (Doubled(nn.Linear(2, 2)), "not Doubled"),
        (nn.Sequential(nn.Sequential()), "no units"),
        (None, "not NoneType"),
        (5, "not int"),
        ([nn.Linear(2, 2)], "not list"),
        (nn.Sequential, "not the class Sequential"),
        (nn.Linear, "not the class Linear"),
        (in_itself(nn.Sequential(nn.Linear(2, 2))), "a Sequential that is inside itself"),
        (nn.Sequential(in_itself(nn.ReLU())), "a ReLU that is inside itself"),
    ],
)
def test_what_is_not_a_list_of_units_is_refused(model, message):
    with pytest.raises(UserError, match=message):
        units_of(model)


@pytest.mark.parametrize(
    ("at", "expected"),
    [
        ([], [NAMES]),
        (["body"], [NAMES[:1], NAMES[1:]]),
        (["body.1", "head"], [NAMES[:2], NAMES[2:6], NAMES[6:]]),
        (["body.1.act", "bodyguard"], [NAMES[:3], NAMES[3:5], NAMES[5:]]),
    ],
)
def test_cuts_by_name_and_by_prefix(at, expected):
    assert [names(block) for block in split(units_of(nested()), at)] == expected


@pytest.mark.parametrize(
    ("at", "message"),
    [
        (["hed"], "'hed', which is not a unit of this network: did you mean 'head'"),
        (["body.1.nom"], "did you mean 'body.1.norm'"),
        (["bod"], "'bod', which is not a unit.*did you mean 'body'"),
        (["xyz"], r"use one of stem, body\.0"),
        (["stem"], "non-empty blocks"),
        (["head", "body"], "in order"),
        (["body", "body.0"], "non-empty blocks"),
        (["head", "head"], "non-empty blocks"),
    ],
)
def test_cuts_that_do_not_work_are_refused(at, message):
    with pytest.raises(UserError, match=message):
        split(units_of(nested()), at)


def test_a_parameter_shared_by_two_blocks_is_refused():
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3))
    model[2].weight = model[0].weight
    units = units_of(model)
    with pytest.raises(
        UserError, match=r"2\.weight in block 2 is the same tensor as 0\.weight in block 1"
    ):
        split(units, ["1"])
    assert len(split(units, [])) == 1  # one block may own both


def test_a_buffer_shared_by_two_blocks_is_refused():
    first, second = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    second.running_mean = first.running_mean
    with pytest.raises(UserError, match=r"b\.running_mean in block 2.*a\.running_mean in block 1"):
        check_ownership([[Unit("a", first)], [Unit("b", second)]])


def test_a_module_without_tensors_may_be_in_two_blocks():
    act = nn.ReLU()
    model = nn.Sequential(nn.Linear(3, 3), act, nn.Linear(3, 3), act)
    assert [names(b) for b in split(units_of(model), ["2"])] == [["0", "1"], ["2", "3"]]


@pytest.mark.parametrize(
    ("model", "at"),
    [
        (nested(), ["body.1.act", "head"]),
        (
            build_network(ResNetSettings(widths=(2, 4), depths=2), (3, 8, 8), 5, 0),
            ["layer1.1", "layer2.0", "head"],
        ),
    ],
)
def test_chains_keep_the_original_names_and_load_them_back(model, at):
    chains = [Chain(block) for block in split(units_of(model), at)]
    merged = {name: t.clone() for chain in chains for name, t in chain.original_state().items()}
    assert_same_bits(merged, dict(model.state_dict()))
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.add_(1)
    changed = {name: t.clone() for name, t in model.state_dict().items()}
    assert not any(torch.equal(changed[name], merged[name]) for name in merged)
    for chain in chains:
        chain.load_original_state(merged)  # the whole model's state: each takes its part
    assert_same_bits(dict(model.state_dict()), merged)
    model.load_state_dict(changed)  # and the names load into the original module


def test_a_chain_maps_every_parameter_to_its_original_name():
    model = nested()
    chain = Chain(split(units_of(model), ["body.1"])[1])
    for name, parameter in chain.named_parameters():
        assert model.get_parameter(chain.original_name(name)) is parameter
