"""A Ray cluster of two nodes on this machine, of one CPU each, whose processes can be killed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

RAY = Path(sys.executable).with_name("ray")
TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "of-this-test-alone"}
"""Said to every process, so that a token in the user's home does not decide who may join."""


def node(
    temp: str, *arguments: str, cwd: Path | None = None, cpus: str = "1", **environment: str
) -> subprocess.Popen[bytes]:
    """A Ray node, in the foreground, so that it can be ended by its own process."""
    flags = [f"--num-cpus={cpus}", "--block", "--node-ip-address=127.0.0.1", "--disable-usage-stats"]
    if "--head" in arguments:
        flags += ["--include-dashboard=false", f"--temp-dir={temp}"]
    command = [str(RAY), "start", *arguments, *flags]
    variables = os.environ | TOKEN | environment
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True, env=variables, cwd=cwd)


@dataclass
class TwoNodes:
    """The cluster that is up."""

    port: int
    environment: dict[str, str]
    cwd: Path | None = None
    """Working directory of all its processes."""
    temp: str = ""
    nodes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    """The head first."""

    @property
    def address(self) -> str:
        """Of the cluster, for `--address`."""
        return f"127.0.0.1:{self.port}"

    def start_head(self) -> None:
        """Start the head, and wait until it is there."""
        self.temp = tempfile.mkdtemp(prefix="rp-")
        self.nodes = [node(self.temp, "--head", f"--port={self.port}", cwd=self.cwd, **self.environment)]
        wait_for_cpus(self.address, 1)

    def start(self) -> None:
        """Start both nodes, and wait until they are there."""
        self.start_head()
        self.add()
        wait_for_cpus(self.address, 2)

    def add(self) -> None:
        """Start the node that is not the head, without waiting for it."""
        self.nodes[1:] = [node(self.temp, f"--address={self.address}", cwd=self.cwd, **self.environment)]

    def kill(self, number: int) -> None:
        """Kill all processes of a node, without a word."""
        process = self.nodes[number]
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def stop(self) -> None:
        """End both nodes, and remove their folder."""
        for process in reversed(self.nodes):
            process.terminate()
            process.wait(60)
        shutil.rmtree(self.temp, ignore_errors=True)


@contextmanager
def two_nodes(port: int, cwd: Path | None = None, **environment: str) -> Iterator[TwoNodes]:
    """Two nodes that are up, for the block."""
    cluster = TwoNodes(port, environment, cwd)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


def wait_for_cpus(address: str, count: int) -> None:
    """Wait until a cluster answers and has so many CPUs."""
    code = (
        "import sys, time\nfrom raypaml.cluster import session\n"
        "for _ in range(120):\n"
        "    try:\n"
        "        with session.join(sys.argv[1]):\n"
        "            if session.cpus() >= int(sys.argv[2]): sys.exit(0)\n"
        "    except ValueError: pass\n"
        "    time.sleep(1)\n"
        "sys.exit('no cluster')"
    )
    subprocess.run([sys.executable, "-c", code, address, str(count)], check=True, timeout=200, env=os.environ | TOKEN)


_WORKER_NODE = """
import sys, time, ray
from raypaml.cluster import session
def others():
    return [n["NodeID"] for n in ray.nodes() if n["Alive"] and "node:__internal_head__" not in n["Resources"]]
until = time.monotonic() + 60
with session.join(sys.argv[1]):
    while len(found := others()) != 1 and time.monotonic() < until:
        time.sleep(0.2)
print(*found)
"""


def worker_node(address: str) -> str:
    """The id of the node that is not the head; waited for, as is that a killed one before it counts as dead."""
    told = os.environ | TOKEN | {"RAY_ADDRESS": address}
    command = [sys.executable, "-c", _WORKER_NODE, address]
    said = subprocess.run(command, env=told, stdout=subprocess.PIPE, text=True, check=True).stdout
    return said.split()[-1]  # after what Ray may have to say


def drain(address: str, node_id: str, seconds: int) -> None:
    """Announce that a node will be taken away."""
    what = [f"--address={address}", f"--node-id={node_id}", "--reason-message=gone soon"]
    notice = ["--reason=DRAIN_NODE_REASON_PREEMPTION", f"--deadline-remaining-seconds={seconds}"]
    command = [str(RAY), "drain-node", *what, *notice]
    subprocess.run(command, env=os.environ | TOKEN, check=True, stdout=subprocess.DEVNULL)
