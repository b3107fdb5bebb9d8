"""Sparse and multi-vectors through Qdrant's own Python client: every answer is compared with the client's local mode.

    python3 -m venv venv && venv/bin/pip install qdrant-client numpy
    venv/bin/python client/suites/qdrant/vectors.py http://127.0.0.1:6333

The same calls go to the server and to `QdrantClient(":memory:")`. Scores may differ by 1e-4 (local mode adds up in another
order and precision); where scores are equal that closely, the order of hits is nobody's business. Exits with 1 after the first
group of checks that fails, naming the check.
"""
import random
import sys
import uuid

import numpy as np
from qdrant_client import QdrantClient, models

NEAR = 1e-4
COUNT = 300


def sparse(rng, most=6):
    """Up to `most` indices in any order; low ones are common, high ones rare."""
    indices = list({int(rng.random() ** 3 * 60) for _ in range(rng.randint(1, most))})
    rng.shuffle(indices)
    return models.SparseVector(indices=indices, values=[round(rng.uniform(0.1, 3.0), 3) for _ in indices])


def rows(rng, dimension=4):
    return [[round(rng.uniform(-1, 1), 3) for _ in range(dimension)] for _ in range(rng.randint(1, 4))]


def points(rng):
    made = []
    for number in range(COUNT):
        vectors = {"words": sparse(rng), "plain": sparse(rng), "late": rows(rng), "far": rows(rng), "dot": rows(rng)}
        vectors["dense"] = [round(rng.uniform(-1, 1), 3) for _ in range(4)]
        # Some points lack some vectors.
        for name in list(vectors):
            if rng.random() < 0.15:
                del vectors[name]
        payload = {"group": number % 7, "text": f"point {number}"}
        made.append(models.PointStruct(id=number, vector=vectors, payload=payload))
    return made


def settings():
    multi = models.MultiVectorConfig(comparator=models.MultiVectorComparator.MAX_SIM)

    def rows_of(distance):
        return models.VectorParams(size=4, distance=distance, multivector_config=multi)

    return {
        "vectors_config": {
            "dense": models.VectorParams(size=4, distance=models.Distance.COSINE),
            "late": rows_of(models.Distance.COSINE),
            "far": rows_of(models.Distance.EUCLID),
            "dot": rows_of(models.Distance.DOT),
        },
        "sparse_vectors_config": {
            "words": models.SparseVectorParams(modifier=models.Modifier.IDF),
            "plain": models.SparseVectorParams(index=models.SparseIndexParams(on_disk=False)),
        },
    }


def same_hits(got, wanted, what):
    """Equal scores rank by rank, and where a score is clearly another than its neighbours', the same point."""
    got, wanted = got.points, wanted.points
    assert len(got) == len(wanted), f"{what}: {len(got)} hits, local mode has {len(wanted)}"
    scores = [hit.score for hit in wanted]
    for rank, (hit, local) in enumerate(zip(got, wanted)):
        near = abs(hit.score - local.score) <= NEAR * max(1.0, abs(local.score))
        assert near, f"{what}: rank {rank}: score {hit.score}, local mode has {local.score}"
        alone = all(abs(other - local.score) > 2 * NEAR for at, other in enumerate(scores) if at != rank)
        if alone and rank + 1 < len(wanted):
            assert hit.id == local.id, f"{what}: rank {rank}: point {hit.id}, local mode has {local.id}"
            assert hit.payload == local.payload, f"{what}: payload of {hit.id}"


def plain(vector):
    """A vector as comparable numbers; sparse ones by index."""
    if isinstance(vector, models.SparseVector):
        return dict(zip(vector.indices, vector.values))
    return np.asarray(vector, dtype=np.float32)


def same_vector(got, wanted, what):
    got, wanted = plain(got), plain(wanted)
    if isinstance(wanted, dict):
        assert set(got) == set(wanted), f"{what}: indices {sorted(got)}, local mode has {sorted(wanted)}"
        assert all(abs(got[index] - wanted[index]) <= NEAR for index in wanted), what
    else:
        assert got.shape == wanted.shape and np.allclose(got, wanted, atol=NEAR), f"{what}: {got} {wanted}"


def same_records(got, wanted, what):
    assert [record.id for record in got] == [record.id for record in wanted], what
    for record, local in zip(got, wanted):
        assert record.payload == local.payload, f"{what}: payload of {record.id}"
        ours, theirs = record.vector or {}, local.vector or {}
        assert set(ours) == set(theirs), f"{what}: {record.id} has {set(ours)}, local mode has {set(theirs)}"
        for name in theirs:
            same_vector(ours[name], theirs[name], f"{what}: {name} of {record.id}")


class Both:
    """One call to both clients."""

    def __init__(self, server, local, collection):
        self.server, self.local, self.collection = server, local, collection
        self.checks = 0

    def do(self, method, **arguments):
        for client in (self.server, self.local):
            getattr(client, method)(collection_name=self.collection, **arguments)

    def query(self, what, **arguments):
        got = self.server.query_points(self.collection, **arguments)
        wanted = self.local.query_points(self.collection, **arguments)
        same_hits(got, wanted, what)
        self.checks += 1
        return got.points

    def records(self, what, **arguments):
        got = self.server.retrieve(self.collection, with_vectors=True, **arguments)
        wanted = self.local.retrieve(self.collection, with_vectors=True, **arguments)
        same_records(got, wanted, what)
        self.checks += 1

    def scroll(self, what, **arguments):
        got, _ = self.server.scroll(self.collection, limit=1000, with_vectors=True, **arguments)
        wanted, _ = self.local.scroll(self.collection, limit=1000, with_vectors=True, **arguments)
        same_records(got, wanted, what)
        self.checks += 1


def queries(both, rng, when):
    group = models.Filter(must=[models.FieldCondition(key="group", match=models.MatchValue(value=3))])
    with_rows = models.Filter(must=[models.HasVectorCondition(has_vector="late")])
    for at in range(6):
        for name in ("words", "plain"):
            asked = sparse(rng, 8)
            what = f"{when}: {name} #{at}"
            found = both.query(what, query=asked, using=name, limit=COUNT)
            both.query(f"{what}, filtered", query=asked, using=name, limit=10, query_filter=group)
            both.query(f"{what}, with rows", query=asked, using=name, limit=COUNT, query_filter=with_rows)
            both.query(f"{what}, offset", query=asked, using=name, limit=5, offset=3)
            if found:
                # Between two scores, so that neither side's rounding decides.
                middle = found[len(found) // 2].score - 3 * NEAR
                both.query(f"{what}, threshold", query=asked, using=name, limit=COUNT, score_threshold=middle)
        for name in ("late", "far", "dot"):
            asked = rows(rng)
            what = f"{when}: {name} #{at}"
            both.query(what, query=asked, using=name, limit=COUNT)
            both.query(f"{what}, filtered", query=asked, using=name, limit=10, query_filter=group)
            # A dense vector is a single row; local mode does not know that.
            one = [both.server.query_points(both.collection, query=query, using=name, limit=10).points
                   for query in (asked[0], asked[:1])]
            assert one[0] == one[1], f"{what}: one row"
    # Hybrid: what dense and sparse found, fused.
    prefetch = [
        models.Prefetch(query=[0.3, -0.2, 0.9, 0.1], using="dense", limit=40),
        models.Prefetch(query=sparse(rng, 8), using="plain", limit=40),
    ]
    both.query(f"{when}: re-ranked by rows", prefetch=prefetch, query=rows(rng), using="late", limit=20)


def run(url):
    rng = random.Random(7)
    server, local = QdrantClient(url=url, timeout=30), QdrantClient(":memory:")
    both = Both(server, local, f"vectors-{uuid.uuid4().hex[:8]}")
    try:
        both.do("create_collection", **settings())
        params = server.get_collection(both.collection).config.params
        assert params.sparse_vectors["words"].modifier == models.Modifier.IDF, "the modifier is told"
        assert params.vectors["late"].multivector_config.comparator == models.MultiVectorComparator.MAX_SIM
        assert params.vectors["dense"].multivector_config is None

        both.do("upsert", points=points(rng), wait=True)
        both.scroll("written")
        queries(both, rng, "written")

        # By example: a stored point stands for its vector, and is not found itself.
        both.query("by example", query=11, using="plain", limit=20)
        for name in ("dense", "words", "late", "nobody"):
            condition = models.Filter(must_not=[models.HasVectorCondition(has_vector=name)])
            counts = [client.count(both.collection, count_filter=condition).count for client in (server, local)]
            assert counts[0] == counts[1], f"without {name}: {counts}"
        liked = models.RecommendQuery(recommend=models.RecommendInput(positive=[11, 12], negative=[40]))
        both.query("recommended", query=liked, using="plain", limit=20)
        both.query("recommended by rows", query=liked, using="late", limit=20)

        # Vectors of points changed and taken away, points overwritten and deleted.
        changed = [models.PointVectors(id=number, vector={"words": sparse(rng), "late": rows(rng)}) for number in range(20)]
        both.do("update_vectors", points=changed)
        both.do("delete_vectors", vectors=["plain", "far"], points=list(range(30, 60)))
        both.do("delete", points_selector=models.PointIdsList(points=list(range(100, 140))))
        both.do("upsert", points=[models.PointStruct(id=5, vector={"words": sparse(rng)}, payload={"group": 3})])
        both.do("set_payload", payload={"group": 3}, points=list(range(200, 220)))
        both.records("changed", ids=[1, 5, 31, 99, 150, 210])
        both.scroll("changed")
        queries(both, rng, "changed")

        # Columns, as older code sends them.
        batch = models.Batch(ids=[900, 901], payloads=[{"group": 1}, {"group": 3}],
                             vectors={"words": [sparse(rng), sparse(rng)], "late": [rows(rng), rows(rng)]})
        both.do("upsert", points=batch)
        both.records("columns", ids=[900, 901])

        for wrong in (
            models.SparseVector(indices=[1, 1], values=[1.0, 2.0]),
            models.SparseVector(indices=[1], values=[1.0, 2.0]),
            [0.1, 0.2, 0.3, 0.4],
        ):
            try:
                server.upsert(both.collection, [models.PointStruct(id=950, vector={"words": wrong})])
            except Exception as error:  # noqa: BLE001
                assert "words" in str(error) or "vector" in str(error), error
            else:
                raise AssertionError(f"{wrong} was taken")
        assert server.retrieve(both.collection, [950]) == [], "a refused request changes nothing"

        server.update_collection(both.collection, sparse_vectors_config={"plain": models.SparseVectorParams(modifier=models.Modifier.IDF)})
        params = server.get_collection(both.collection).config.params
        assert params.sparse_vectors["plain"].modifier == models.Modifier.IDF, "a changed modifier is told"

        # A collection of sparse vectors only.
        alone = f"{both.collection}-sparse"
        server.create_collection(alone, vectors_config={}, sparse_vectors_config={"w": models.SparseVectorParams()})
        server.upsert(alone, [models.PointStruct(id=1, vector={"w": models.SparseVector(indices=[3], values=[2.0])})])
        hits = server.query_points(alone, query=models.SparseVector(indices=[3, 4], values=[0.5, 9.0]), using="w").points
        assert [(hit.id, hit.score) for hit in hits] == [(1, 1.0)]
        server.delete_collection(alone)
    finally:
        server.delete_collection(both.collection)
    print(f"{both.checks} comparisons with local mode, all equal")


if __name__ == "__main__":
    run(sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:6333")
