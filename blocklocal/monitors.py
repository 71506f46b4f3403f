"""Ray's monitors in a local cluster: they give way to training.

Every cluster has two, for which nothing waits: one reads the logs, for drivers that want to see
them, and one asks a cloud for nodes. A local cluster needs neither. Ray has no setting without
them, and to start they take one and a half seconds of CPU, which blocks and agents need at the
same time. So they get a smaller share of the cores.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

NICE = 10
"""About a tenth of the share of a process of the usual priority."""
SCRIPTS = frozenset({"log_monitor.py", "monitor.py"})
_LOOK_SECONDS = 0.02


@contextmanager
def giving_way() -> Iterator[None]:
    """Lower the priority of monitors that this thread starts meanwhile, as soon as they are there.

    Where the system does not list the children of a thread (it is not Linux), nothing is lowered.
    """
    children = Path(f"/proc/self/task/{threading.get_native_id()}/children")
    if not children.exists():
        yield
        return
    over, earlier = threading.Event(), _numbers(children)  # another cluster of this process
    arguments = (children, earlier, over)
    watch = threading.Thread(target=_watch, args=arguments, name="monitors", daemon=True)
    watch.start()
    try:
        yield
    finally:
        over.set()
        watch.join()


def _numbers(children: Path) -> set[int]:
    return set(map(int, children.read_text().split()))


def _watch(children: Path, earlier: set[int], over: threading.Event) -> None:
    found: set[str] = set()
    last = False
    while not last and found != SCRIPTS:
        last = over.wait(_LOOK_SECONDS)  # Ray has no event for this
        for number in _numbers(children) - earlier:
            with suppress(OSError):  # it has ended, or belongs to someone else
                script = _script(number)
                if script in SCRIPTS - found:
                    _lower(number)
                    found.add(script)


def _script(number: int) -> str:
    """The name of the Python file that a process runs, if it runs one."""
    words = Path(f"/proc/{number}/cmdline").read_bytes().split(b"\0")
    names = (os.path.basename(os.fsdecode(word)) for word in words[1:])
    return next((name for name in names if name.endswith(".py")), "")


def _lower(number: int) -> None:
    for thread in map(int, os.listdir(f"/proc/{number}/task")):  # each has a priority of its own
        nice = max(NICE, os.getpriority(os.PRIO_PROCESS, thread))
        os.setpriority(os.PRIO_PROCESS, thread, nice)
