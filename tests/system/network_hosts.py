"""Hosts on one machine: network namespaces with addresses and host names of their own, on a bridge.

What a rank sees in one of them (interfaces, peers, its host's name) is what it sees on a machine of
a cluster; files and process ids are shared. Making them needs root, CAP_NET_ADMIN and iproute2.
"""
import errno
import os
import shlex
import shutil
import signal
import string
import subprocess
import sys
import tempfile
import time

_letters = iter(string.ascii_lowercase)
_TOOLS = ("ip", "unshare", "mpirun")


def missing():
    """Why hosts cannot be made here; empty: they can."""
    lacking = [tool for tool in _TOOLS if not shutil.which(tool)]
    if lacking:
        return f"no {', '.join(lacking)} here"
    version = subprocess.run(["mpirun", "--version"], capture_output=True, text=True, check=False)
    if "Open MPI" not in version.stdout:
        return "mpirun is not Open MPI's, whose remote agent the test replaces"
    name = f"fgtry{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if made.returncode != 0:
        return f"network namespaces cannot be made ({made.stderr.strip()})"
    entered = subprocess.run(["ip", "netns", "exec", name, "unshare", "--uts", "true"],
                             capture_output=True, text=True, check=False)
    _ip("netns", "del", name)
    return "" if entered.returncode == 0 else f"they cannot be entered ({entered.stderr.strip()})"


def _ip(*words):
    result = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise RuntimeError(f"ip {' '.join(words)}: {result.stderr.strip()}")
    return result.stdout


class Hosts:
    """`count` hosts; close() removes them and ends what still runs there."""

    def __init__(self, count):
        # The kernel takes its time to remove what an earlier one had.
        unique = f"{os.getpid() % 10000}{next(_letters)}"
        self.bridge = f"fgbr{unique}"
        self.names = [f"fg{unique}node{i}" for i in range(count)]
        # Not in use anywhere else on this machine, as the bridge joins these namespaces alone.
        self.addresses = [f"10.213.7.{i + 1}" for i in range(count)]
        self.folder = tempfile.mkdtemp(prefix="filigree-hosts-")
        try:
            self._make()
        except BaseException:
            self.close()
            raise

    def _make(self):
        _ip("link", "add", self.bridge, "type", "bridge")
        _ip("link", "set", self.bridge, "up")
        table = "127.0.0.1 localhost\n" + "".join(
            f"{address} {name}\n" for address, name in zip(self.addresses, self.names))
        for i, (name, address) in enumerate(zip(self.names, self.addresses)):
            os.makedirs(f"/etc/netns/{name}")
            with open(f"/etc/netns/{name}/hosts", "w", encoding="utf-8") as file:
                file.write(table)
            _ip("netns", "add", name)
            _ip("link", "add", self._port(i), "type", "veth", "peer", "name", "eth0", "netns", name)
            _ip("link", "set", self._port(i), "master", self.bridge)
            self.set_link(i, up=True)
            _ip("-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
            _ip("-n", name, "link", "set", "eth0", "up")
            _ip("-n", name, "link", "set", "lo", "up")
        for i in range(len(self.names)):
            self.wait_until_reached(i)
        self.agent = os.path.join(self.folder, "agent.sh")
        with open(self.agent, "w", encoding="utf-8") as file:
            # mpirun calls it as it calls ssh: HOST COMMAND.
            file.write('#!/bin/sh\nhost=$1\nshift\n'
                       'exec ip netns exec "$host" unshare --uts sh -c "hostname $host; $*"\n')
        os.chmod(self.agent, 0o755)

    def _port(self, host):
        return f"{self.bridge}p{host}"

    def set_link(self, host, up):
        _ip("link", "set", self._port(host), "up" if up else "down")

    def wait_until_reached(self, host, seconds=20):
        """Until the first host reaches `host`: a link that came up takes a moment to carry."""
        # A port where nobody listens: that is said by the host itself.
        attempt = ("import socket, sys; s = socket.socket(); s.settimeout(1); "
                   f"sys.exit(s.connect_ex(({self.addresses[host]!r}, 1)) != {errno.ECONNREFUSED})")
        deadline = time.monotonic() + seconds
        while subprocess.run(["ip", "netns", "exec", self.names[0], sys.executable, "-c", attempt],
                             check=False).returncode != 0:
            if time.monotonic() > deadline:
                raise RuntimeError(f"{self.names[host]} cannot be reached")

    def command(self, words, ranks_each):
        """`words` under mpirun, started on the first host, with a hostfile of all."""
        hostfile = os.path.join(self.folder, "hostfile")
        with open(hostfile, "w", encoding="utf-8") as file:
            file.write("".join(f"{name} slots={ranks_each}\n" for name in self.names))
        mpirun = ["mpirun", "-np", str(ranks_each * len(self.names)), "--hostfile", hostfile,
                  "--map-by", f"ppr:{ranks_each}:node", "--bind-to", "none",
                  "--mca", "plm_rsh_agent", self.agent,
                  "--mca", "btl_tcp_if_include", "eth0", "--mca", "oob_tcp_if_include", "eth0"]
        inside = f"hostname {self.names[0]}; exec {shlex.join([*mpirun, *words])}"
        return ["ip", "netns", "exec", self.names[0], "unshare", "--uts", "sh", "-c", inside]

    def pids(self, host, program):
        """Processes of `program` on a host, oldest first."""
        return [pid for pid in sorted(map(int, _ip("netns", "pids", self.names[host]).split()))
                if name_of(pid) == program]

    def close(self):
        for name in self.names:
            listed = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True,
                                    check=False)
            for pid in map(int, listed.stdout.split()):
                kill(pid)
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
            shutil.rmtree(f"/etc/netns/{name}", ignore_errors=True)
        subprocess.run(["ip", "link", "del", self.bridge], capture_output=True, check=False)
        shutil.rmtree(self.folder, ignore_errors=True)


def name_of(pid):
    """The program a process runs; None where it has ended."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            name, rest = file.read().split("(", 1)[1].rsplit(")", 1)
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if rest.split()[0] == "Z" else name


def kill(pid, number=signal.SIGKILL):
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass
