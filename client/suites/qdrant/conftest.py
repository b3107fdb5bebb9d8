"""Clients of the cluster that `run` started, over every transport that `QDRANT_TRANSPORTS` names (default: rest and grpc)."""
import os
import random
import uuid

import pytest
from qdrant_client import QdrantClient, models

from both import Both

TRANSPORTS = os.environ.get("QDRANT_TRANSPORTS", "rest,grpc").split(",")
COUNT = 240
WORDS = ["amber", "birch", "cedar", "dune", "ember", "fjord", "grove", "heath"]


@pytest.fixture(scope="session")
def url():
    return os.environ["QDRANT_URL"]


@pytest.fixture(scope="session", params=TRANSPORTS)
def transport(request):
    """The arguments of a client."""
    return {
        "url": os.environ["QDRANT_URL"],
        "grpc_port": int(os.environ["QDRANT_GRPC_PORT"]),
        "prefer_grpc": request.param == "grpc",
        "timeout": 30,
        # The header is accepted; there is nothing to compare it with.
        "api_key": "any",
    }


@pytest.fixture(scope="session")
def server(transport):
    client = QdrantClient(**transport)
    yield client
    client.close()


def dense(rng, size):
    return [round(rng.uniform(-1, 1), 4) for _ in range(size)]


def sparse(rng):
    indices = rng.sample(range(40), rng.randint(1, 6))
    return models.SparseVector(indices=indices, values=[round(rng.uniform(0.1, 2), 3) for _ in indices])


def payload(rng, number):
    """Fields of every kind; some points lack some."""
    whole = {
        "number": number,
        "group": f"g{rng.randint(0, 6)}",
        "price": round(rng.uniform(0, 100), 3),
        "flag": rng.random() < 0.5,
        "tags": rng.sample(WORDS, rng.randint(0, 4)),
        "text": " ".join(rng.choices(WORDS, k=rng.randint(1, 5))).capitalize() + ".",
        "when": f"20{rng.randint(10, 24)}-{rng.randint(1, 12):02}-{rng.randint(1, 28):02}T{rng.randint(0, 23):02}:30:00"
        + rng.choice(["Z", "+02:00", "", "-05:00"]),
        "place": {"lat": round(rng.uniform(-60, 60), 4), "lon": round(rng.uniform(-170, 170), 4)},
        "items": [{"kind": rng.choice(WORDS), "size": rng.randint(0, 9)} for _ in range(rng.randint(0, 3))],
        "grid": [[rng.randint(-9, 9) for _ in range(rng.randint(1, 3))] for _ in range(rng.randint(1, 3))],
        "maybe": rng.choice([None, [], [None], "there", 0]),
        "deep": {"er": {"value": rng.randint(0, 20)}},
    }
    for key in list(whole):
        if key != "number" and rng.random() < 0.1:
            del whole[key]
    return whole


def sample(seed=11, count=COUNT):
    rng = random.Random(seed)
    made = []
    for number in range(count):
        point = number if number % 3 else str(uuid.UUID(int=rng.getrandbits(128), version=4))
        vectors = {"cosine": dense(rng, 8), "euclid": dense(rng, 6), "dot": dense(rng, 4), "words": sparse(rng)}
        made.append(models.PointStruct(id=point, vector=vectors, payload=payload(rng, number)))
    return made


def settings():
    return {
        "vectors_config": {
            "cosine": models.VectorParams(size=8, distance=models.Distance.COSINE),
            "euclid": models.VectorParams(size=6, distance=models.Distance.EUCLID),
            "dot": models.VectorParams(size=4, distance=models.Distance.DOT),
        },
        "sparse_vectors_config": {"words": models.SparseVectorParams()},
    }


@pytest.fixture
def points():
    return sample()


def make_both(server):
    made = Both(server, QdrantClient(":memory:"), f"suite-{uuid.uuid4().hex[:8]}")
    made.do("create_collection", **settings())
    made.do("upsert", points=sample(), wait=True)
    return made


@pytest.fixture(scope="module")
def both(server):
    """The sample, for tests that only read."""
    made = make_both(server)
    yield made
    server.delete_collection(made.collection)


@pytest.fixture
def own(server):
    """The sample, for a test that changes it."""
    made = make_both(server)
    yield made
    server.delete_collection(made.collection)
