"""Runs a command beside a cluster of processes: three of `nearring-node`, one of `nearring-router`, on free ports and an empty
folder. Unlike `nearring dev` its nodes can fail apart from each other: the command may kill them.

    NEARRING=target/release/nearring python3 client/suites/common/processes.py node --test

`nearring-node` and `nearring-router` are looked for beside the program that NEARRING names. The command finds the cluster through
`QDRANT_URL` (HTTP), `NEARRING_ROUTER` (gRPC, for `nearring`), and the processes through `NODE_PIDS`, by number of the node.
Exits with the command's status, or with 1 where a process panicked. Needs nothing but Python itself.
"""
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

from cluster import free_port_base

NODES = 3
PATIENCE_SECONDS = 60


def until_ready(url, processes):
    """Waits until every shard has a leader and every node answers."""
    ends = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < ends:
        ended = [process.args[0] for process in processes if process.poll() is not None]
        if ended:
            raise RuntimeError(f"ended at once: {ended}")
        try:
            with urllib.request.urlopen(f"{url}/nearring/cluster", timeout=5) as reply:
                status = json.load(reply)
            if len(status["nodes"]) == NODES and not status["problems"]:
                return
        except (urllib.error.URLError, OSError):
            pass
        time.sleep(0.1)
    raise RuntimeError(f"the cluster was not up after {PATIENCE_SECONDS} s")


def run(command):
    """The exit status of the command, or 1 where a process panicked."""
    beside = pathlib.Path(os.environ["NEARRING"]).resolve().parent
    missing = [name for name in ("nearring-node", "nearring-router") if not (beside / name).exists()]
    if missing:
        sys.exit(f"{' and '.join(missing)} must lie beside {os.environ['NEARRING']}")
    with tempfile.TemporaryDirectory(prefix="nearring-suite-") as folder:
        folder = pathlib.Path(folder)
        base = free_port_base()
        address = [f"127.0.0.1:{base + at}" for at in range(NODES + 2)]
        nodes = address[1 : NODES + 1]
        seeds = ",".join(f"{number}={at}" for number, at in enumerate(nodes, 1))
        url = f"http://{address[NODES + 1]}"
        commands = [
            [beside / "nearring-node", "--node", str(number), "--data", folder / str(number), "--listen", at, "--seeds", seeds]
            for number, at in enumerate(nodes, 1)
        ]
        router = [beside / "nearring-router", "--nodes", ",".join(nodes), "--listen", address[0]]
        commands.append([*router, "--rest-listen", address[NODES + 1]])
        logs = [folder / f"log-{at}" for at in range(len(commands))]
        processes = []
        try:
            for command_line, log in zip(commands, logs):
                with log.open("wb") as into:
                    processes.append(subprocess.Popen([str(part) for part in command_line], stdout=into, stderr=into))
            until_ready(url, processes)
            environment = {
                "QDRANT_URL": url,
                "NEARRING_ROUTER": address[0],
                "NODE_PIDS": ",".join(str(process.pid) for process in processes[:NODES]),
            }
            status = subprocess.run(command, env={**os.environ, **environment}).returncode
        finally:
            for process in processes:
                process.send_signal(signal.SIGTERM)
            for process in processes:
                try:
                    process.wait(timeout=30)
                except subprocess.TimeoutExpired:
                    process.kill()
        for log in logs:
            text = log.read_text(errors="replace")
            if "panicked" in text:
                print(f"a process panicked; the end of its log:\n{text[-4000:]}", file=sys.stderr)
                return status or 1
        return status


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
