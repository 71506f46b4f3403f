"""Ray's workers by forking: one process imports PyTorch, and each worker is a fork of it.

A worker then runs Ray's own program for workers, as ever. That saves most of the two seconds of
CPU that an actor costs, and tests start hundreds. Ray itself is not imported before: it reads the
environment of its worker when it is.

    raylet ──starts──▶ launcher ──asks──▶ this process ──forks──▶ worker

A launcher ends with its worker, and a worker with its launcher.
"""

from __future__ import annotations

import gc
import json
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from unittest import mock

MODULES = ("learning.build", "learning.data")
"""What nearly all workers need; nothing here starts threads or imports Ray."""

_LAUNCHER = """#!{python} -IS
import json, os, socket, sys
if not sys.argv[1].endswith("/default_worker.py"):
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
with socket.socket(socket.AF_UNIX) as asked:
    asked.connect({address!r})
    wanted = json.dumps([sys.argv[1:], dict(os.environ), os.getcwd()]).encode()
    socket.send_fds(asked, [len(wanted).to_bytes(4, "big")], [0, 1, 2])
    asked.sendall(wanted)
    asked.recv(1)
"""


@contextmanager
def launcher(directory: Path) -> Iterator[str]:
    """What Ray is to take for Python when it starts; its workers end with this block."""
    address, path = directory / "prefork", directory / "python"
    path.write_text(_LAUNCHER.format(python=sys.executable, address=str(address)))
    path.chmod(0o700)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(address))
        listener.listen(64)
        command = [sys.executable, "-m", "tests.prefork", str(listener.fileno())]
        # Forks lose threads; and Ray itself gives a worker one.
        alone = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(
            command, pass_fds=[listener.fileno()], env=alone, stdout=subprocess.PIPE
        )
    try:
        # Ray gives its workers a minute to begin, which on a slow processor is not enough for all.
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        yield str(path)
    finally:
        process.terminate()
        process.communicate()


@contextmanager
def forked_workers(directory: Path) -> Iterator[None]:
    """Let the nodes that this process starts, and ends, in this block have such workers."""
    with launcher(directory) as python, mock.patch.object(sys, "executable", python):
        yield


class Forks:
    """Workers by process id, each with the connection of its launcher."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._selector = selectors.DefaultSelector()
        self._workers: dict[int, socket.socket] = {}

    def serve(self) -> None:
        """Fork for whoever asks; end those whose launcher ends."""
        self._selector.register(self._listener, selectors.EVENT_READ)
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(writing)
        self._selector.register(reading, selectors.EVENT_READ)
        while True:
            for key, _ in self._selector.select():
                if key.fd == reading:
                    os.read(reading, 4096)
                    self._reap()
                elif key.fd == self._listener.fileno():
                    self._fork()
                elif key.data in self._workers:
                    os.kill(key.data, signal.SIGKILL)
                    self._selector.unregister(key.fileobj)

    def _reap(self) -> None:
        while self._workers:
            pid, _ = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            connection = self._workers.pop(pid)
            if connection in self._selector.get_map():
                self._selector.unregister(connection)
            connection.close()

    def _fork(self) -> None:
        connection, _ = self._listener.accept()
        size, streams, _, _ = socket.recv_fds(connection, 4, 3)
        wanted = connection.recv(int.from_bytes(size, "big"), socket.MSG_WAITALL)
        pid = os.fork()
        if not pid:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for number, stream in enumerate(streams):
                os.dup2(stream, number)
            os.closerange(3, 1024)
            _become(*json.loads(wanted))
        for stream in streams:
            os.close(stream)
        self._workers[pid] = connection
        self._selector.register(connection, selectors.EVENT_READ, pid)


def _become(words: list[str], environment: dict[str, str], directory: str) -> None:
    """Be the worker that Ray wanted."""
    os.chdir(directory)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = words
    sys.path[0] = str(Path(words[0]).parent)
    code = 0
    try:
        runpy.run_path(words[0], run_name="__main__")
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    finally:
        os._exit(code)


if __name__ == "__main__":
    for module in MODULES:
        import_module(module)
    assert len(os.listdir("/proc/self/task")) == 1 and "ray" not in sys.modules
    gc.freeze()
    print("ready", flush=True)
    Forks(socket.socket(fileno=int(sys.argv[1]))).serve()
