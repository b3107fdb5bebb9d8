"""Clusters for the suite: `nearring dev` with the sample collection, once as it comes and once with a model server."""

import contextlib
import json
import os
import signal
import subprocess

import openai
import pytest

from model_server import ModelServer

PORT_BASE = int(os.environ.get("PORT_BASE", "17334"))


@contextlib.contextmanager
def dev(folder, port_base, **environment):
    """Runs `nearring dev --sample`; gives the address of its HTTP door."""
    command = [os.environ["NEARRING"], "--json", "dev", "--sample", "--data", str(folder), "--port-base", str(port_base)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment})
    try:
        for line in process.stdout:
            told = json.loads(line)
            if told.get("ready"):
                yield told["http"]
                return
        raise RuntimeError(f"`nearring dev` ended with {process.wait()} before it was ready")
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)


@pytest.fixture(scope="session")
def http(tmp_path_factory):
    """The address of a router with what ships."""
    with dev(tmp_path_factory.mktemp("plain"), PORT_BASE) as address:
        yield address


@pytest.fixture(scope="session")
def url(http):
    return f"{http}/v1"


@pytest.fixture(scope="session")
def client(url):
    with openai.OpenAI(base_url=url, api_key="sk-any") as client:
        yield client


@pytest.fixture(scope="session")
def model_server():
    with ModelServer() as server:
        yield server


@pytest.fixture(scope="session")
def generated(tmp_path_factory, model_server):
    """A client of a router whose answers a model server writes; it does not repeat what failed."""
    environment = {
        "NEARRING_GENERATOR_URL": model_server.url,
        "NEARRING_GENERATOR_MODEL": "scribe",
        "NEARRING_GENERATOR_KEY": "sk-s3cret",
        "NEARRING_GENERATOR_TIMEOUT_MS": "1500",
    }
    with dev(tmp_path_factory.mktemp("generated"), PORT_BASE + 10, **environment) as address:
        with openai.OpenAI(base_url=f"{address}/v1", api_key="sk-any", max_retries=0) as client:
            yield client
