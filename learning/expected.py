"""Which tensors the state of a program's learners must hold: a check before anything is built."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from learning.build import Program, build_block, build_feedback
from learning.errors import UserError
from learning.learners.base import partition_state
from learning.learners.block import BlockLearner
from learning.learners.delayed import DelayedBlock
from learning.learners.feedback import FeedbackLearner
from learning.learners.replay import ReplayingBlock
from learning.messages import block_name, feedback_name
from learning.module_state import from_json
from learning.policies.optimizers import make_optimizer
from learning.settings import OptimizerSettings
from learning.units import Chain, Unit

Kind = tuple[torch.dtype, tuple[int, ...]]
"""Type and shape of a tensor."""

_FROZEN, _EVALUATION = "flags.frozen", "flags.evaluation"
_OF_ANY_SIZE = ("flags.", "extra.")
"""Parts of a state that hold JSON."""
_UNDER_WAY = ("sent", "pending", "stashed", "replay")
"""Parts of a state whose names depend on the step."""


def check_state(
    program: Program,
    blocks: Sequence[Sequence[Unit]],
    state: Mapping[str, Mapping[str, Tensor]],
    step: int,
    where: object,
    *,
    whole: bool = False,
) -> None:
    """Check that a state is one that this program's learners can go on from.

    Args:
        blocks: units of each block; they stay as they are.
        state: tensors by learner.
        step: that the state is of: so many steps are finished.
        where: the state is from, for the error message.
        whole: whether it is of a version that keeps all that a module holds.

    Raises:
        UserError: naming the first tensor that is missing, surplus or of another type or shape.
    """
    later = blocks if program.rule.looks_ahead else [()] * len(blocks)
    learners: dict[str, Expected] = {}
    for k, units in enumerate(blocks, start=1):
        learner = build_block(program, k, (), later=later[k:])  # without the weights of its units
        learners[block_name(k)] = Expected.of_block(program, learner, units, step, whole=whole)
    for k in range(1, program.feedback_modules + 1):
        learners[feedback_name(k)] = Expected.of_feedback(build_feedback(program, k))
    for name in sorted({*learners, *state}):
        if name not in state or name not in learners:
            here, there = ("is not in", "needs it") if name in learners else ("is in", "has none")
            raise UserError(
                f"{name} {here} the checkpoint from {where} and this run {there}: use a checkpoint "
                "of the same rule and cut"
            )
        learners[name].check(name, state[name], where)


def check_model(mine: Mapping[str, Tensor], theirs: Mapping[str, Tensor], where: object) -> None:
    """Check that the tensors of a network are those that another state of it has.

    Raises:
        UserError: naming the first that does not fit.
    """
    for name in sorted({*mine, *theirs}):
        wanted, found = (_kind(t[name]) if name in t else None for t in (mine, theirs))
        if wanted != found:
            raise UserError(_sentence(f"model.{name}", wanted, found, "the network", where))


class Expected:
    """The tensors that a learner's state must hold.

    Args:
        whole: of what is there at every step, by full name.
        learning: the parameters that the optimizer changes, by name.
        optimizer: its settings.
        learnt: whether a step has changed any of them.
        frozen: names of the block's parameters that do not learn.
        required: parts of names under way, `<part>.<step>.<shard>` and the like.
    """

    def __init__(
        self,
        whole: Mapping[str, Tensor],
        learning: Mapping[str, Tensor],
        optimizer: OptimizerSettings,
        *,
        learnt: bool,
        outer: bool,
        required: Iterable[str] = (),
        frozen: Iterable[str] = (),
    ) -> None:
        self._whole = {name: _kind(tensor) for name, tensor in whole.items()}
        if outer:
            for part in ("parameters", "velocity"):
                self._whole |= {f"outer.{part}.{n}": _kind(p) for n, p in learning.items()}
        self._learning, self._learnt = learning, learnt
        self._keys = {dtype: _optimizer_keys(optimizer, dtype) for dtype in _types(learning)}
        self._required, self._frozen = tuple(required), set(frozen)

    @classmethod
    def of_block(
        cls,
        program: Program,
        learner: BlockLearner,
        units: Sequence[Unit],
        step: int,
        *,
        whole: bool,
    ) -> Expected:
        """What block `learner.index` holds, which is built without its `units`."""
        chain, settings = Chain(units), program.settings
        named_whole = chain.whole_state()
        tensors = {n: t for n, t in named_whole.items() if not n.startswith(_OF_ANY_SIZE)}
        frozen = [chain.original_name(n) for n, p in chain.named_parameters() if not _learns(p)]
        named = [(chain.original_name(n), p) for n, p in chain.named_parameters()]
        if learner.objective is not None:
            own = learner.objective
            tensors |= {f"auxiliary.{name}": tensor for name, tensor in own.state_dict().items()}
            named += [(f"auxiliary.{name}", p) for name, p in own.named_parameters()]
        done = range(step - learner.delay)
        required = ["replay.arrived"] if isinstance(learner, ReplayingBlock) else []
        if whole:
            required += [_FROZEN, _EVALUATION, *(n for n in named_whole if n not in tensors)]
        if isinstance(learner, DelayedBlock):
            waiting = range(max(0, step - learner.delay), step)
            shards = range(settings.shards)
            required += [f"pending.{t}.{s}.y" for t in waiting for s in shards]
            if learner.stash != "inputs":
                required += [f"stashed.{t}.{n}" for t in waiting for n, p in named if _learns(p)]
        return cls(
            tensors,
            {name: p for name, p in named if _learns(p)},
            settings.optimizer,
            learnt=any(learner.credit.at(t).sources(learner.index, learner.last) for t in done),
            outer=settings.outer is not None,
            required=required,
            frozen=frozen,
        )

    @classmethod
    def of_feedback(cls, learner: FeedbackLearner) -> Expected:
        """What a feedback module holds."""
        settings, module = learner.settings, learner.module
        return cls(
            {f"feedback.{name}": tensor for name, tensor in module.state_dict().items()},
            dict(module.named_parameters()),
            settings.optimizer,
            learnt=True,
            outer=settings.outer is not None,
        )

    def check(self, learner: str, state: Mapping[str, Tensor], where: object) -> None:
        """Compare a learner's state.

        Raises:
            UserError: naming the first tensor that differs.
        """
        wanted = dict(self._whole)
        if _FROZEN in state:
            self._check_frozen(set(from_json(state[_FROZEN])), where)
        else:  # of a version that kept neither
            wanted = {n: kind for n, kind in wanted.items() if not n.startswith("hidden.")}
        moments = partition_state({n: t for n, t in state.items() if n.startswith("optimizer.")})
        known = {full.rsplit(".", 1)[0] for full in moments["optimizer"]}
        has_keys = any(self._keys.values())
        if self._learnt and self._learning and has_keys and not known & self._learning.keys():
            raise UserError(
                f"the checkpoint from {where} has no state of the optimizer for {learner}, which "
                "has learnt: use one that is whole"
            )
        for name, parameter in self._learning.items():
            if name in known:  # those that no gradient has reached have none
                for key, kind in self._keys[parameter.dtype].items():
                    same = _kind(parameter) if kind is None else kind
                    wanted[f"optimizer.{name}.{key}"] = same
        passed = (*_UNDER_WAY, *_OF_ANY_SIZE)
        found = {n: _kind(t) for n, t in state.items() if not n.startswith(passed)}
        for name in sorted({*wanted, *found}):
            if wanted.get(name) != found.get(name):
                raise UserError(_sentence(name, wanted.get(name), found.get(name), learner, where))
        for name in self._required:
            if name not in state:
                raise UserError(_sentence(name, "there", None, learner, where))

    def _check_frozen(self, there: set[str], where: object) -> None:
        for name in sorted(self._frozen ^ there):
            here, then = ("learns", "is frozen") if name in there else ("is frozen", "learns")
            raise UserError(
                f"{name} {here} in this network and {then} in {where}: set its requires_grad as it "
                "was in that run"
            )


def _sentence(
    name: str, wanted: Kind | str | None, found: Kind | None, learner: str, where: object
) -> str:
    kind, _, rest = name.partition(".")
    fix = "use a whole checkpoint of the same rule and optimizer"
    shown = f"{name} of {learner}"
    if kind == "model":
        shown, fix = rest, "give the network of that run"
    if wanted and found and wanted[0] == found[0]:
        return f"{shown} has shape {wanted[1]} in this network and {found[1]} in {where}: {fix}"
    return f"{shown} is {_text(wanted)} in this network and {_text(found)} in {where}: {fix}"


def _text(kind: Kind | str | None) -> str:
    if kind is None:
        return "missing"
    return kind if isinstance(kind, str) else f"{kind[0]} of shape {kind[1]}"


def _optimizer_keys(settings: OptimizerSettings, dtype: torch.dtype) -> dict[str, Kind | None]:
    """What the optimizer keeps for a parameter; None: of the parameter's own type and shape."""
    parameter = nn.Parameter(torch.zeros(1, dtype=dtype))  # no scalar: those are counters
    optimizer = make_optimizer([parameter], settings, 0.0)
    parameter.grad = torch.zeros_like(parameter)
    with torch.no_grad():
        optimizer.step()
    return {
        key: None if value.shape == parameter.shape else _kind(value)
        for key, value in optimizer.state[parameter].items()
        if isinstance(value, Tensor)
    }


def _types(parameters: Mapping[str, Tensor]) -> set[torch.dtype]:
    return {parameter.dtype for parameter in parameters.values()}


def _learns(parameter: Tensor) -> bool:
    return parameter.requires_grad


def _kind(tensor: Tensor) -> Kind:
    return tensor.dtype, tuple(tensor.shape)
