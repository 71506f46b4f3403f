"""Errors a user can cause or must know about; each message is one sentence: value, limit, fix."""

from __future__ import annotations


class UserError(ValueError):
    """Input that cannot be run: the command line prints the sentence and exits with code 2."""


class NonFiniteLossError(UserError):
    """A block's loss became NaN or infinite; raised before its gradient reaches any weight.

    Plain arguments so that it survives pickling between processes.
    """

    def __init__(self, block: int, step: int, loss: float) -> None:
        super().__init__(block, step, loss)
        self.block, self.step, self.loss = block, step, loss

    def __str__(self) -> str:
        return (
            f"the loss of block {self.block} is {self.loss} at step {self.step}: training stopped "
            "and the last checkpoint is kept; lower optimizer.lr or set optimizer.clip"
        )
