"""Breaks the cluster of docker-compose.yml, one host at a time, while clients write and read; judges what they were answered.

    sudo python3 deploy/drill/drill.py                    # hosts are network namespaces (iproute2)
    sudo python3 deploy/drill/drill.py --containers       # hosts are the containers of `docker compose up`

Nodes are killed, paused, cut off both ways, cut off one way and the other: each time the one that leads most shards. Then all are
told to stop in turn, and then the router.
Meanwhile run a client on the Rust SDK and Qdrant's Python client over REST and over gRPC, which sends nothing again. Prints for
each fault the longest time in which a client got no write through, and its errors. Ends with 1 where anything acknowledged is
lost or undone, where a client saw an error while one node was out, or where the cluster did not heal.

Namespaces run the very commands and environments that docker-compose.yml gives its containers, each host with an address, a
name and a folder of its own. Containers are entered from outside (nsenter), so images need no tools. Needs root, Python with
PyYAML and qdrant-client (--python names another interpreter for the latter), and the programs in --binaries.
"""
import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
NODES = ["node1", "node2", "node3"]
NETWORK, BRIDGE = "10.214.77", "drill"
HTTP, GRPC = 6333, 6334
CLIENTS = {"sdk": "Rust SDK", "rest": "qdrant-client REST", "grpc": "qdrant-client gRPC"}


def run(*command, check=True):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if check and done.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, command))}: {done.stderr.strip() or done.stdout.strip()}")
    return done


class Network:
    """Cuts, the same for both kinds of hosts: rules in the receiver's network namespace, which lose packets in silence."""

    def inside(self, host):
        raise NotImplementedError

    def address(self, host):
        raise NotImplementedError

    def lose(self, sender, receiver):
        rule = ["from", f"{self.address(sender)}/32", "iif", "eth0", "blackhole"]
        run(*self.inside(receiver), "ip", "rule", "add", "priority", 10, *rule)

    def cut_off(self, host, sends=True, receives=True):
        """Loses what the host sends to the others, what it receives from them, or both."""
        others = [other for other in [*NODES, "router"] if other != host]
        for other in others:
            if sends:
                self.lose(host, other)
            if receives:
                self.lose(other, host)

    def prepare(self, host):
        """What is local to a host is asked before any rule; so that cuts come first, it is put behind them."""
        if "100:" not in run(*self.inside(host), "ip", "rule").stdout:
            run(*self.inside(host), "ip", "rule", "add", "priority", 100, "lookup", "local")
            run(*self.inside(host), "ip", "rule", "del", "priority", 0)

    def mend(self):
        for host in [*NODES, "router"]:
            while run(*self.inside(host), "ip", "rule", "del", "priority", 10, check=False).returncode == 0:
                pass


class Namespaces(Network):
    """Every service of the file is a process in a network namespace of its own, joined by a bridge in a further one."""

    def __init__(self, services, binaries, folder):
        self.services, self.binaries, self.folder, self.processes = services, binaries, folder, {}
        hosts = [*services, "client"]
        self.addresses = {host: f"{NETWORK}.{at}" for at, host in enumerate(hosts, 1)}
        self.remove()
        run("ip", "netns", "add", self.name("bridge"))
        run("ip", "-n", self.name("bridge"), "link", "add", BRIDGE, "type", "bridge")
        run("ip", "-n", self.name("bridge"), "link", "set", BRIDGE, "up")
        names = "".join(f"{address} {host}\n" for host, address in self.addresses.items())
        for host in hosts:
            name = self.name(host)
            # `ip netns exec` shows a program what lies here as its /etc/hosts.
            etc = Path("/etc/netns") / name
            etc.mkdir(parents=True)
            (etc / "hosts").write_text(f"127.0.0.1 localhost\n{names}")
            run("ip", "netns", "add", name)
            run("ip", "link", "add", "eth0", "netns", name, "type", "veth", "peer", "name", host, "netns", self.name("bridge"))
            run("ip", "-n", self.name("bridge"), "link", "set", host, "master", BRIDGE, "up")
            run("ip", "-n", name, "address", "add", f"{self.addresses[host]}/24", "dev", "eth0")
            for interface in ("lo", "eth0"):
                run("ip", "-n", name, "link", "set", interface, "up")
        for host in services:
            self.start(host)
            self.prepare(host)

    def name(self, host):
        return f"nearring-drill-{host}"

    def inside(self, host):
        return ["ip", "netns", "exec", self.name(host)]

    def address(self, host):
        return self.addresses[host]

    def start(self, host):
        service, data = self.services[host], self.folder / host
        data.mkdir(exist_ok=True)
        environment = {key: value for key, value in service.get("environment", {}).items() if value is not None}
        if "NEARRING_DATA" in environment:
            environment["NEARRING_DATA"] = str(data)
        program, *arguments = service["command"]
        command = [*self.inside(host), self.binaries / program, *arguments]
        with open(self.folder / f"{host}.log", "ab") as log:
            self.processes[host] = subprocess.Popen(
                command, env={"PATH": os.environ["PATH"], **environment}, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def signal(self, host, number):
        self.processes[host].send_signal(number)

    def kill(self, host):
        self.signal(host, signal.SIGKILL)
        self.processes[host].wait()

    def stop(self, host):
        """As `docker compose stop` does; the exit code."""
        self.signal(host, signal.SIGTERM)
        grace = int(self.services[host].get("stop_grace_period", "10s").rstrip("s"))
        return self.processes[host].wait(grace)

    def pause(self, host):
        self.signal(host, signal.SIGSTOP)

    def resume(self, host):
        self.signal(host, signal.SIGCONT)

    def client(self, command):
        return [*self.inside("client"), *command]

    def router(self):
        return self.addresses["router"]

    def tool(self, *arguments):
        command = [self.binaries / "nearring", "--router", f"{self.router()}:{GRPC}", *arguments]
        return run(*self.client(command), check=False)

    def remove(self):
        for host in self.processes:
            if self.processes[host].poll() is None:
                self.kill(host)
        for host in [*self.services, "client", "bridge"]:
            run("ip", "netns", "del", self.name(host), check=False)
            shutil.rmtree(Path("/etc/netns") / self.name(host), ignore_errors=True)


class Containers(Network):
    """The containers that `docker compose up` has started, or starts here."""

    def __init__(self, services):
        self.services = services
        run(*self.compose("up", "--detach", "--wait"))
        self.router_ports = {port: run(*self.compose("port", "router", port)).stdout.strip() for port in (HTTP, GRPC)}
        for host in services:
            self.prepare(host)

    def compose(self, *arguments):
        return ["docker", "compose", "--project-directory", ROOT, *arguments]

    def identity(self, host):
        return run(*self.compose("ps", "--all", "--quiet", host)).stdout.strip()

    def inspect(self, host, what):
        return run("docker", "inspect", "--format", what, self.identity(host)).stdout.strip()

    def inside(self, host):
        return ["nsenter", "--target", self.inspect(host, "{{.State.Pid}}"), "--net"]

    def address(self, host):
        networks = json.loads(self.inspect(host, "{{json .NetworkSettings.Networks}}"))
        return next(network["IPAddress"] for name, network in networks.items() if name.endswith("cluster"))

    def start(self, host):
        run("docker", "start", self.identity(host))
        self.prepare(host)

    def kill(self, host):
        run("docker", "kill", self.identity(host))

    def stop(self, host):
        run(*self.compose("stop", host))
        return int(self.inspect(host, "{{.State.ExitCode}}"))

    def pause(self, host):
        run("docker", "pause", self.identity(host))

    def resume(self, host):
        run("docker", "unpause", self.identity(host))

    def client(self, command):
        return command

    def router(self):
        return "127.0.0.1"

    def tool(self, *arguments):
        return run(*self.compose("exec", "--no-TTY", "router", "nearring", *arguments), check=False)

    def remove(self):
        run(*self.compose("down", "--volumes"), check=False)


class Client:
    """One client and everything that it has told."""

    def __init__(self, kind, hosts, arguments):
        self.kind, self.lines, self.last = kind, [], None
        if kind == "sdk":
            command = [arguments.binaries / "drill_writer", f"{hosts.router()}:{GRPC}", f"drill-{kind}"]
        else:
            script = ROOT / "deploy/drill/qdrant_writer.py"
            command = [arguments.python, script, hosts.router(), HTTP, GRPC, kind, f"drill-{kind}"]
        self.process = subprocess.Popen(
            list(map(str, hosts.client(command))), stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True)
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()

    def read(self):
        for line in self.process.stdout:
            told = json.loads(line)
            if "done" in told:
                self.last = told
            else:
                self.lines.append(told)

    def end(self):
        self.process.send_signal(signal.SIGTERM)
        self.reader.join(120)
        return self.last or {"checked": 0, "lost": ["the client did not end in order"]}

    def between(self, begin, end):
        return [line for line in self.lines if begin <= line["at"] + line["ms"] / 1000 and line["at"] <= end]

    def stall(self, begin, end):
        """The longest time, in seconds, without an acknowledged write that touches the given one."""
        done = sorted(line["at"] + line["ms"] / 1000 for line in self.lines
                      if line["what"] in ("upsert", "delete") and "error" not in line)
        gaps = [(after - before, before) for before, after in zip(done, done[1:]) if after >= begin and before <= end]
        return max(gaps, default=(end - begin, begin))[0]


def healed(hosts, within=90):
    begin = time.monotonic()
    while time.monotonic() - begin < within:
        if hosts.tool("cluster", "status", "--all-nodes").returncode == 0:
            return time.monotonic() - begin
        time.sleep(0.25)
    raise RuntimeError(f"the cluster has not healed within {within} s: {hosts.tool('cluster', 'status').stderr}")


def leads_most(hosts):
    status = json.loads(hosts.tool("--json", "cluster", "status", "--all-nodes").stdout)
    leads = {node["node"]: sum(replica["role"] == "leader" for replica in node["replicas"]) for node in status["nodes"]}
    node = max(leads, key=leads.get)
    return f"node{node}", leads[node]


def faults(hosts, rounds):
    """Name, the host, what breaks it and what mends it."""
    kinds = [
        ("killed", hosts.kill, hosts.start),
        ("paused", hosts.pause, hosts.resume),
        ("cut off", hosts.cut_off, lambda _: hosts.mend()),
        ("sends to nobody", lambda host: hosts.cut_off(host, receives=False), lambda _: hosts.mend()),
        ("hears nobody", lambda host: hosts.cut_off(host, sends=False), lambda _: hosts.mend()),
        ("not heard by the router", lambda host: hosts.lose(host, "router"), lambda _: hosts.mend()),
    ]
    for _ in range(rounds):
        for what, breaks, mends in kinds:
            host, leads = leads_most(hosts)
            yield f"{host}, leads {leads}, {what}", host, breaks, mends

    def stopped(host):
        code = hosts.stop(host)
        if code != 0:
            raise RuntimeError(f"{host}, told to stop, ended with {code}")

    for host in NODES:
        leads = f"{host}, leads {leads_most(hosts)[1]}" if leads_most(hosts)[0] == host else host
        yield f"{leads}, told to stop", host, stopped, hosts.start
    yield "router told to stop", "router", stopped, hosts.start


def drill(hosts, arguments):
    print(f"up after {healed(hosts):.1f} s", flush=True)
    clients = [Client(kind, hosts, arguments) for kind in arguments.clients.split(",")]
    begun = time.monotonic()
    while any(len(client.lines) < 20 for client in clients):
        if time.monotonic() - begun > 60:
            raise RuntimeError("a client does not get going")
        time.sleep(0.25)
    failed = []
    print("| fault | healed after | " + " | ".join(f"{CLIENTS[c.kind]}: stall, operations, errors" for c in clients) + " |")
    print("|---|---|" + "---|" * len(clients), flush=True)
    for name, host, breaks, mends in faults(hosts, arguments.rounds):
        begin = time.time()
        breaks(host)
        time.sleep(arguments.seconds)
        mends(host)
        took = healed(hosts)
        time.sleep(1.5)
        end = time.time()
        cells = []
        for client in clients:
            lines = client.between(begin, end)
            errors = [line["error"] for line in lines if "error" in line]
            cells.append(f"{client.stall(begin, end):.2f} s, {len(lines)}, {len(errors)}")
            if errors and host != "router":
                failed.append(f"{name}: {CLIENTS[client.kind]}: {errors[0]}")
            failed += [f"{name}: {error}" for error in errors if "must be one of" in error]
        print(f"| {name} | {took:.1f} s | " + " | ".join(cells) + " |", flush=True)
    for client in clients:
        last = client.end()
        print(f"{CLIENTS[client.kind]}: {len(client.lines)} operations, {last['checked']} points read back, "
              f"{len(last['lost'])} not as acknowledged")
        failed += [f"{CLIENTS[client.kind]}: {line}" for line in last["lost"]]
    verified = hosts.tool("cluster", "verify")
    print("replicas equal" if verified.returncode == 0 else verified.stderr.strip())
    if verified.returncode != 0:
        failed.append("replicas differ")
    return failed


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--containers", action="store_true", help="hosts are containers")
    parser.add_argument("--binaries", type=Path, default=ROOT / "target/release")
    parser.add_argument("--python", default=sys.executable, help="an interpreter that has qdrant-client")
    parser.add_argument("--clients", default=",".join(CLIENTS), help="some of: %(default)s")
    parser.add_argument("--seconds", type=float, default=6, help="how long a fault lasts")
    parser.add_argument("--rounds", type=int, default=2, help="how often each kind of fault")
    parser.add_argument("--keep", action="store_true", help="leave hosts and logs as they are at the end")
    arguments = parser.parse_args()
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    folder = Path(tempfile.mkdtemp(prefix="nearring-drill-"))
    hosts = Containers(services) if arguments.containers else Namespaces(services, arguments.binaries.resolve(), folder)
    failed = ["it was interrupted"]
    try:
        failed = drill(hosts, arguments)
    finally:
        if not arguments.keep:
            hosts.remove()
        if not failed and not arguments.keep:
            shutil.rmtree(folder)
        elif not arguments.containers:
            print(f"logs and data are in {folder}")
    for line in failed:
        print(f"FAILED {line}")
    print("passed" if not failed else f"{len(failed)} failures")
    sys.exit(1 if failed else 0)


main()
