"""Machines made of namespaces: own processes, network, home and /tmp each, and an SSH server.

They see the files of this machine and nothing else of it: `ray stop` in one ends the processes of
that one. Everything ends with the process that made them.

    laptop 192.168.1.1 ── bridge ── 192.168.1.10 (head)
                             └───── 192.168.1.11 (worker) ...
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Sequence
from pathlib import Path

USER = "ubuntu"
HOME = Path("/home") / USER
LAPTOP = "192.168.1.1"
ROOT = Path(__file__).parents[2]
SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
UNSHARE = ["unshare", "--pid", "--fork", "--kill-child", "--mount", "--mount-proc", "--net"]
UNSHARE += ["--uts", "--ipc"]

SSHD_CONFIG = """
ListenAddress {address}
HostKey /run/host_key
AuthorizedKeysFile {home}/.ssh/id_ed25519.pub
PasswordAuthentication no
PermitRootLogin prohibit-password
StrictModes no
UsePAM no
UseDNS no
LogLevel FATAL
PidFile none
"""


def missing() -> str | None:
    """Why there can be no machines here; None if there can."""
    for tool in ("unshare", "ip", "ssh", "ssh-keygen", "rsync", "mount"):
        if shutil.which(tool) is None:
            return f"{tool} is not installed"
    if SSHD is None:
        return "sshd is not installed (openssh-server)"
    if os.getuid() != 0:
        return "only root may make namespaces with a network"
    made = subprocess.run(
        [*UNSHARE, "sh", "-c", "ip link add test type bridge && mount -t tmpfs none /tmp"],
        capture_output=True,
        text=True,
    )
    return f"no namespaces here: {made.stderr.strip()}" if made.returncode else None


def run(*command: str) -> str:
    """The output of a command that must succeed."""
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def until(true: Callable[[], bool], seconds: float, what: str) -> None:
    """Wait for it."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)  # other machines tell nobody


def answers(host: str, port: int) -> bool:
    """Whether somebody listens there."""
    with socket.socket() as probe:
        probe.settimeout(5)
        return probe.connect_ex((host, port)) == 0


def isolate() -> None:
    """Make this process's namespaces a machine's: own /tmp, /home, /run, memory and user.

    Raises:
        RuntimeError: where this process is not alone in them; nothing has been touched then.
    """
    others = [p for p in os.listdir("/proc") if p.isdigit() and int(p) != os.getpid()]
    links = {name for _, name in socket.if_nameindex()} - {"lo"}
    if os.getpid() != 1 or others or links:
        raise RuntimeError(f"not alone: process {os.getpid()}, others {others}, links {links}")
    kept = [p for p in (ROOT, Path(sys.prefix), Path(sys.base_prefix)) if p.is_relative_to("/tmp")]
    run("mount", "-t", "tmpfs", "none", "/mnt")
    for i, path in enumerate(kept):
        (Path("/mnt") / str(i)).mkdir()
        run("mount", "--rbind", str(path), f"/mnt/{i}")
    for path in ("/tmp", "/home", "/run", "/dev/shm"):
        run("mount", "-t", "tmpfs", "none", path)
    for i, path in enumerate(kept):
        path.mkdir(parents=True, exist_ok=True)
        run("mount", "--rbind", f"/mnt/{i}", str(path))
    os.chmod("/tmp", 0o1777)
    HOME.mkdir()
    lines = Path("/etc/passwd").read_text().splitlines()
    users = [f"{name}:x:0:0::{HOME}:/bin/bash" for name in ("root", USER)]
    users += [line for line in lines if not line.startswith(("root:", f"{USER}:"))]
    Path("/run/passwd").write_text("\n".join(users) + "\n")
    run("mount", "--bind", "/run/passwd", "/etc/passwd")
    os.environ.update(HOME=str(HOME), USER=USER, LOGNAME=USER)
    run("ip", "link", "set", "lo", "up")


class Machines:
    """Some machines, and this process as the laptop that reaches them."""

    def __init__(self, addresses: Sequence[str]) -> None:
        isolate()
        run("ip", "link", "add", "bridge", "type", "bridge")
        run("ip", "link", "set", "bridge", "up")
        run("ip", "address", "add", f"{LAPTOP}/24", "dev", "bridge")
        (HOME / ".ssh").mkdir(mode=0o700)
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(HOME / ".ssh/id_ed25519"))
        self._processes = [self._boot(i, address) for i, address in enumerate(addresses)]
        for address in addresses:
            until(lambda at=address: answers(at, 22), 20, f"no SSH server on {address}")

    def _boot(self, index: int, address: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [*UNSHARE, sys.executable, "-m", "tests.clusters.machines", address],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "isolated\n", address
        inner, outer = f"inner{index}", f"outer{index}"
        run("ip", "link", "add", outer, "type", "veth", "peer", "name", inner)
        run("ip", "link", "set", outer, "master", "bridge", "up")
        run("ip", "link", "set", inner, "netns", str(process.pid), "name", "eth0")
        assert process.stdin is not None
        process.stdin.write((HOME / ".ssh/id_ed25519.pub").read_text())
        process.stdin.close()
        return process

    def ssh(self, address: str, command: str) -> str:
        """Run a command on a machine."""
        options = ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]
        return run("ssh", "-q", *options, f"{USER}@{address}", f"source ~/.bashrc; {command}")


def be_machine(address: str) -> None:
    """The life of one machine: an SSH server, and an environment with what this one has."""
    isolate()
    print("isolated", flush=True)
    key = sys.stdin.read()
    run("ip", "address", "add", f"{address}/24", "dev", "eth0")
    run("ip", "link", "set", "eth0", "up")
    run("ip", "route", "add", "default", "via", LAPTOP)
    (HOME / ".ssh").mkdir(mode=0o700)
    (HOME / ".ssh/id_ed25519.pub").write_text(key)
    _install()
    os.mkdir("/run/sshd", 0o755)
    run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", "/run/host_key")
    Path("/run/sshd_config").write_text(SSHD_CONFIG.format(address=address, home=HOME))
    assert SSHD is not None
    server = subprocess.Popen([SSHD, "-D", "-e", "-f", "/run/sshd_config"])
    while os.wait()[0] != server.pid:
        pass  # the first process of a machine buries the others' orphans


def _install() -> None:
    """What a machine has before `ray up`: Python, and the packages that pip would download.

    pip finds them installed; what it builds is this project.
    """
    environment = HOME / "blocklocal-env"
    base = Path(sys.base_prefix) / "bin"
    run(str(base / "python3"), "-m", "venv", "--without-pip", str(environment))
    (site,) = environment.glob("lib/python*/site-packages")
    (site / "packages.pth").write_text(sysconfig.get_path("purelib") + "\n")
    python = environment / "bin/python3"
    for name, module in (("pip", "pip"), ("ray", "ray.scripts.scripts")):
        script = environment / "bin" / name
        script.write_text(f"#!{python}\nfrom {module} import main\nraise SystemExit(main())\n")
        script.chmod(0o755)
    # "false" is how pip's configuration says: no isolation.
    pip = "[global]\nno-index = true\nno-build-isolation = false\n"
    (HOME / ".config/pip").mkdir(parents=True)
    (HOME / ".config/pip/pip.conf").write_text(pip)
    # The head looks for workers every second, not every five.
    (HOME / ".bashrc").write_text(f'export PATH="{base}:$PATH" AUTOSCALER_UPDATE_INTERVAL_S=1\n')


if __name__ == "__main__":
    be_machine(sys.argv[1])
