"""Writes through Qdrant's own Python client, without ever sending anything again, until it is told to stop
(SIGTERM); then reads all back.

    python qdrant_writer.py HOST HTTP_PORT GRPC_PORT rest|grpc COLLECTION

Prints one JSON line for each operation (`{"at", "ms", "what", "error"?}`; `at` is when it began, in seconds since 1970), and a
last one: `{"done", "checked", "lost"}`. Each of its threads owns some points, so what one of them must be read as follows from
what was answered: after an error both what was and what was to be are right.
"""
import json
import random
import signal
import sys
import threading
import time

from qdrant_client import QdrantClient, models

THREADS, POINTS, DIMENSION = 4, 40, 8
GONE = None


def vector(value):
    rng = random.Random(value)
    return [rng.uniform(-1, 1) for _ in range(DIMENSION)]


class Writer(threading.Thread):
    def __init__(self, number, connect, collection, stop):
        super().__init__()
        self.number, self.client, self.collection, self.stop = number, connect(), collection, stop
        # Of each point the values that it may have.
        self.may = {number * POINTS + at + 1: {GONE} for at in range(POINTS)}
        self.random = random.Random(number)

    def run(self):
        value = 0
        while not self.stop.is_set():
            point, value = self.random.choice(list(self.may)), value + 1
            new = self.number + THREADS * value
            what = self.random.choices(["upsert", "delete", "read", "query"], [6, 2, 2, 1])[0]
            try:
                began, clock = time.time(), time.monotonic()
                error = None
                getattr(self, what)(point, new)
            except Exception as failed:  # whatever a client raises is what its user sees
                error = f"{type(failed).__name__}: {failed}"[:300]
                if what in ("upsert", "delete"):
                    self.may[point].add(new if what == "upsert" else GONE)
            line = {"at": began, "ms": (time.monotonic() - clock) * 1000, "what": what}
            told(line | ({"error": error} if error else {}))
            time.sleep(0.01)

    def upsert(self, point, new):
        points = [models.PointStruct(id=point, vector=vector(new), payload={"value": new, "thread": self.number})]
        self.client.upsert(self.collection, points)
        self.may[point] = {new}

    def delete(self, point, _):
        self.client.delete(self.collection, [point])
        self.may[point] = {GONE}

    def read(self, point, _):
        found = self.client.retrieve(self.collection, [point])
        value = found[0].payload["value"] if found else GONE
        if value not in self.may[point]:
            raise AssertionError(f"point {point} is {value}, must be one of {self.may[point]}")
        self.may[point] = {value}

    def query(self, _, new):
        mine = models.Filter(must=[models.FieldCondition(key="thread", match=models.MatchValue(value=self.number))])
        self.client.query_points(self.collection, vector(new), query_filter=mine, limit=5)

    def check(self):
        for patience in range(60, -1, -1):
            try:
                records = self.client.retrieve(self.collection, list(self.may))
                break
            except Exception:  # gRPC waits for a while before it tries a router again that was away
                if patience == 0:
                    raise
                time.sleep(0.5)
        found = {record.id: record.payload["value"] for record in records}
        wrong = [(point, found.get(point, GONE), sorted(may, key=str)) for point, may in self.may.items()
                 if found.get(point, GONE) not in may]
        return [f"point {point} is {value}, must be one of {may}" for point, value, may in wrong]


PRINTING = threading.Lock()


def told(line):
    with PRINTING:
        print(json.dumps(line), flush=True)


def main():
    host, http, grpc, protocol, collection = sys.argv[1:]
    connect = lambda: QdrantClient(host=host, port=int(http), grpc_port=int(grpc), prefer_grpc=protocol == "grpc", timeout=20)
    parameters = models.VectorParams(size=DIMENSION, distance=models.Distance.COSINE)
    connect().create_collection(collection, vectors_config=parameters, shard_number=4)
    stop = threading.Event()
    writers = [Writer(number, connect, collection, stop) for number in range(THREADS)]
    for writer in writers:
        writer.start()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    stop.wait()
    for writer in writers:
        writer.join()
    lost = [line for writer in writers for line in writer.check()]
    told({"done": True, "checked": THREADS * POINTS, "lost": lost})


main()
