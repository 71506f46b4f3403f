"""What sentences about data quote of libraries and of lists of names, in brief."""

from __future__ import annotations

from collections.abc import Iterable

from learning.errors import one_line

_LISTED = 100  # characters of names that a sentence lists


def reason(error: BaseException) -> str:
    """Write why a library gave up, in brief; an error without words is called by its type."""
    return one_line(str(error), 140) or type(error).__name__


def listed(names: Iterable[str]) -> str:
    """Write the first names, as many as fit, and how many more there are."""
    all_names = list(names)
    if not all_names:
        return "none"
    shown: list[str] = []
    length = 0
    for name in all_names:
        shown.append(one_line(name, 60))
        length += len(shown[-1]) + 2
        if length > _LISTED:
            break
    more = len(all_names) - len(shown)
    text = ", ".join(shown)
    return f"{text} and {more} more" if more else text
