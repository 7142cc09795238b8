"""Several hosts on one machine: each with an address, process tree, /tmp, home and sshd of its own. Needs root.

Where they cannot be built, tests of them are skipped, or fail with RAYPAML_HOSTS=1.

A host is a network namespace, joined to the others by a bridge, and in it a process tree with its own mounts. What
it shares with this machine is the file system that is not mounted over: the interpreter and the installed packages.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.scan import open_ports

BRIDGE = "raypaml0"
NEEDED = ("ip", "nft", "sshd", "ssh", "ssh-keygen", "rsync", "unshare")


def why_not() -> str:
    """Why no hosts can be built here; "" where they can."""
    missing = [name for name in NEEDED if not shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")]
    if missing:
        return f"{', '.join(missing)} not installed (Debian: make install-hosts)"
    made = subprocess.run(["ip", "netns", "add", "raypaml-may-i"], capture_output=True, text=True, check=False)
    if made.returncode:
        return f"no rights for network namespaces: {made.stderr.strip()}"
    sh("ip netns del raypaml-may-i")
    return ""


def sh(command: str, *, check: bool = True) -> str:
    """Run a command; what it said."""
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert not check or done.returncode == 0, f"{command}\n{done.stderr}"
    return done.stdout


@dataclass
class Hosts:
    """The hosts that are up."""

    state: Path
    """Keys, and what the hosts share; at the same path in all of them."""
    gateway: str
    """This machine's address on their network, with its prefix length."""
    up: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    """By address."""

    @property
    def key(self) -> Path:
        """The private key that opens all of them."""
        return self.state / "key"

    @property
    def shared(self) -> Path:
        """The folder that all of them see."""
        return self.state / "shared"

    def start(self, address: str, authorized: str = "") -> None:
        """Bring up a host; `authorized` is one more public key that opens it."""
        name = name_of(address)
        keys = self.state / f"{name}.keys"
        keys.write_text(f"{self.key.with_suffix('.pub').read_text()}{authorized}\n")
        sh(f"ip netns add {name}")
        sh(f"ip link add {name} type veth peer name eth0 netns {name}")
        sh(f"ip link set {name} master {BRIDGE} up")
        gateway, _, prefix = self.gateway.partition("/")
        for line in (f"addr add {address}/{prefix} dev eth0", "link set eth0 up", "link set lo up"):
            sh(f"ip -n {name} {line}")
        sh(f"ip -n {name} route add default via {gateway}")
        inside = _INSIDE.format(
            state=self.state, name=name, address=address, keys=keys, prefix=sys.base_prefix, env=sys.prefix
        )
        unshare = "unshare -m -p -u -i -f --kill-child --mount-proc"
        command = ["ip", "netns", "exec", name, *unshare.split(), "bash", "-ec", inside]
        with (self.state / f"{name}.log").open("wb") as log:
            self.up[address] = subprocess.Popen(command, stdout=log, stderr=log)
        deadline = time.monotonic() + 30
        while subprocess.run([*self.ssh(address), "true"], capture_output=True, check=False).returncode:
            assert time.monotonic() < deadline, (self.state / f"{name}.log").read_text()
            time.sleep(0.2)

    def ssh(self, address: str) -> list[str]:
        """A command that runs another one on a host."""
        options = "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR -o ConnectTimeout=5"
        return ["ssh", "-i", str(self.key), *options.split(), f"root@{address}"]

    def run(self, address: str, command: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        """Run a command in a login shell of a host."""
        line = [*self.ssh(address), f"bash -lic {shlex.quote(command)}"]
        return subprocess.run(line, capture_output=True, text=True, timeout=timeout, check=False)

    def let_in(self, address: str, rules: Sequence[str]) -> None:
        """Close a host to whatever no rule of nftables lets in, as the network of a cloud does."""
        kept = "\n".join(f"{rule} accept" for rule in ("iif lo", "ct state established,related", *rules))
        chain = f"chain input {{\ntype filter hook input priority 0; policy drop;\n{kept}\n}}"
        table = f"add table inet cloud\ndelete table inet cloud\ntable inet cloud {{\n{chain}\n}}\n"
        sh(f"ip netns exec {name_of(address)} nft {shlex.quote(table)}")

    def listening(self, address: str) -> list[tuple[str, str, int]]:
        """Process, address and port of every socket of a host that takes connections."""
        lines = sh(f"ip netns exec {name_of(address)} ss -Hltnp").splitlines()
        entries = [(line.split()[3].rpartition(":"), line.partition('(("')[2].partition('"')[0]) for line in lines]
        return [(process, where, int(port)) for (where, _, port), process in entries]

    def open_to_strangers(self) -> dict[str, list[int]]:
        """The ports of every host that this machine, which is none of them, can connect to."""
        addresses = list(self.up)
        with ThreadPoolExecutor(len(addresses)) as pool:
            return dict(zip(addresses, pool.map(open_ports, addresses), strict=True))

    def kill(self, address: str) -> None:
        """Pull the plug of a host: all of its processes end at once, its address is gone."""
        process = self.up.pop(address)
        process.send_signal(signal.SIGKILL)
        process.wait()
        sh(f"ip link del {name_of(address)}", check=False)
        sh(f"ip netns del {name_of(address)}", check=False)

    def cut(self, address: str) -> None:
        """Cut the link of a host: nothing arrives, nothing says so."""
        sh(f"ip link set {name_of(address)} nomaster")

    def restore(self, address: str) -> None:
        """Put the link back."""
        sh(f"ip link set {name_of(address)} master {BRIDGE}")


def name_of(address: str) -> str:
    """Name of a host's namespace, and of its end of the link here."""
    return f"raypaml-{'-'.join(address.split('.')[2:])}"


_INSIDE = """
hostname {name}
mkdir -p {state}/{name}
mount --make-rprivate /
mkdir -p /run/raypaml && mount -t tmpfs tmpfs /run/raypaml
mkdir -p /run/raypaml/state /run/raypaml/prefix /run/raypaml/env /run/sshd
mount --bind {state} /run/raypaml/state
mount --bind {prefix} /run/raypaml/prefix
mount --bind {env} /run/raypaml/env
mount -t tmpfs -o size=3g tmpfs /tmp
mount -t tmpfs -o size=1g tmpfs /root
mount -t tmpfs -o size=1g tmpfs /dev/shm
mkdir -p {state} {prefix} {env} /run/raypaml/shared
mountpoint -q {state} || mount --bind /run/raypaml/state {state}
test -x {prefix}/bin/python3 || mount --bind /run/raypaml/prefix {prefix}
test -e {env}/bin/python || mount --bind /run/raypaml/env {env}
ln -s {env} /root/env
cat > /root/.bashrc <<'END'
export PYTHONPATH=$HOME/raypaml GLOO_SOCKET_IFNAME=eth0 RAY_TMPDIR=/tmp OMP_NUM_THREADS=1
export RAY_NODE_IP_ADDRESS={address} RAY_USAGE_STATS_ENABLED=0 RAY_worker_niceness=0
test -e {state}/environment && . {state}/environment
END
echo '. ~/.bashrc' > /root/.bash_profile
ssh-keygen -q -t ed25519 -N '' -f /run/raypaml/host_key
exec $(command -v sshd || echo /usr/sbin/sshd) -D -e -f /dev/null -o ListenAddress={address} \
  -o HostKey=/run/raypaml/host_key -o AuthorizedKeysFile={keys} -o StrictModes=no -o UsePAM=no \
  -o PermitRootLogin=yes -o PidFile=none -o MaxStartups=100
"""


@contextmanager
def hosts(state: Path, gateway: str) -> Iterator[Hosts]:
    """No hosts yet; whatever is up at the end is taken down, and nothing of it stays.

    Whether any can be built is asked here and not when tests are collected, which several processes do at once.
    """
    if reason := why_not():
        (pytest.fail if os.environ.get("RAYPAML_HOSTS") else pytest.skip)(reason)
    found = Hosts(state, gateway)
    found.shared.mkdir(parents=True)
    _sweep()
    sh(f"ssh-keygen -q -t ed25519 -N '' -f {found.key}")
    sh(f"ip link add {BRIDGE} type bridge && ip addr add {gateway} dev {BRIDGE} && ip link set {BRIDGE} up")
    try:
        yield found
    finally:
        for address in list(found.up):
            with suppress(AssertionError):
                found.kill(address)
        sh(f"ip link del {BRIDGE}")


def _sweep() -> None:
    """Remove what a killed test run left: hosts in which nothing runs any more, and the bridge."""
    for line in sh("ip netns list").splitlines():
        name = line.split()[0]
        if name.startswith("raypaml-"):
            pids = sh(f"ip netns pids {name}").split()
            assert not pids, f"hosts of another test run are up: processes {', '.join(pids)} in namespace {name}"
            sh(f"ip link del {name}", check=False)
            sh(f"ip netns del {name}")
    sh(f"ip link del {BRIDGE}", check=False)
