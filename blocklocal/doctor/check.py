"""What an examination finds."""

from __future__ import annotations

from typing import NamedTuple


class Check(NamedTuple):
    """One finding.

    Attributes:
        detail: what was found, with numbers.
        fix: what to do about it, where it is not ok.
    """

    name: str
    ok: bool
    detail: str
    fix: str = ""

    def __str__(self) -> str:
        if self.ok:
            return f"ok  {self.detail}"
        return f"FAILED  {self.detail}" + (f": {self.fix}" if self.fix else "")
