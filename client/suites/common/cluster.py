"""Runs a command beside a cluster of its own: `nearring dev` on free ports and an empty data directory.

    NEARRING=target/release/nearring python3 client/suites/common/cluster.py pytest client/suites/qdrant

The command finds the cluster through `QDRANT_URL` (HTTP) and `QDRANT_GRPC_PORT`. Exits with the command's status; with 1 where
a thread of the cluster panicked, or the cluster did not end cleanly. Needs nothing but Python itself.
"""
import json
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import tempfile

# The router's gRPC port, three nodes, the router's HTTP port.
PORTS = 5


def free_port_base():
    """The first of `PORTS` ports in a row that nobody listens on, below those that the system gives to connections."""
    for base in random.sample(range(15_000, 30_000, PORTS), 200):
        try:
            for port in range(base, base + PORTS):
                with socket.socket() as taken:
                    taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    taken.bind(("127.0.0.1", port))
        except OSError:
            continue
        return base
    raise RuntimeError("found no free ports")


def run(command):
    """The exit status of the command, or 1 where the cluster failed."""
    with tempfile.TemporaryDirectory(prefix="nearring-suite-") as folder:
        folder = pathlib.Path(folder)
        base = free_port_base()
        told = folder / "log"
        dev = [os.environ["NEARRING"], "--json", "dev", "--data", str(folder / "data"), "--port-base", str(base)]
        with told.open("wb") as log:
            process = subprocess.Popen(dev, stdout=subprocess.PIPE, stderr=log)
        try:
            line = process.stdout.readline()
            if not line:
                raise RuntimeError(f"`nearring dev` ended with {process.wait()}: {told.read_text()[-2000:]}")
            ready = json.loads(line)
            environment = {"QDRANT_URL": ready["http"], "QDRANT_GRPC_PORT": ready["router"].rsplit(":", 1)[1]}
            environment["NEARRING_PID"] = str(process.pid)
            status = subprocess.run(command, env={**os.environ, **environment}).returncode
        finally:
            process.send_signal(signal.SIGTERM)
            ended = process.wait(timeout=120)
        log = told.read_text(errors="replace")
        if ended != 0 or "panicked" in log:
            print(f"`nearring dev` ended with {ended}; the end of its log:\n{log[-4000:]}", file=sys.stderr)
            return status or 1
        return status


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
