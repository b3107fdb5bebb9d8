"""The same calls to a server and to the client's local mode, and what may differ between their answers: nothing but rounding.

Local mode adds up in another order and precision, so scores may differ by `NEAR`; where scores are that close to each other,
the order of their hits is nobody's business.
"""
import numpy as np
from qdrant_client import models

NEAR = 1e-4


def near(ours, theirs):
    return abs(ours - theirs) <= NEAR * max(1.0, abs(theirs))


def same_vector(ours, theirs, what):
    assert type(ours) is type(theirs), f"{what}: {type(ours)}, local mode has {type(theirs)}"
    if theirs is None:
        return
    if isinstance(theirs, dict):
        assert ours.keys() == theirs.keys(), f"{what}: {set(ours)}, local mode has {set(theirs)}"
        for name in theirs:
            same_vector(ours[name], theirs[name], f"{what}.{name}")
    elif isinstance(theirs, models.SparseVector):
        by_index = [dict(zip(vector.indices, vector.values)) for vector in (ours, theirs)]
        assert by_index[0].keys() == by_index[1].keys(), what
        assert all(near(value, by_index[1][index]) for index, value in by_index[0].items()), what
    else:
        assert np.allclose(ours, theirs, atol=NEAR), f"{what}: {ours}, local mode has {theirs}"


def same_records(ours, theirs, what):
    """The same points in the same order."""
    assert [record.id for record in ours] == [record.id for record in theirs], what
    for record, local in zip(ours, theirs):
        assert record.payload == local.payload, f"{what}: payload of {record.id}"
        same_vector(record.vector, local.vector, f"{what}: vector of {record.id}")


def same_hits(ours, theirs, what, offset=0):
    """Equal scores rank by rank; where no other score is near, the same point; whatever has the same id, the same content."""
    assert len(ours) == len(theirs), f"{what}: {len(ours)} hits, local mode has {len(theirs)}"
    scores = [hit.score for hit in theirs]
    local = {hit.id: hit for hit in theirs}
    for rank, (hit, other) in enumerate(zip(ours, theirs)):
        assert near(hit.score, other.score), f"{what}: rank {rank}: score {hit.score}, local mode has {other.score}"
        # The last, and the first of a later page, may tie with what was cut off.
        alone = all(abs(score - other.score) > 2 * NEAR for at, score in enumerate(scores) if at != rank)
        if alone and rank + 1 < len(theirs) and (rank or not offset):
            assert hit.id == other.id, f"{what}: rank {rank}: point {hit.id}, local mode has {other.id}"
        if hit.id in local:
            # Over gRPC no payload and an empty one are the same.
            assert (hit.payload or {}) == (local[hit.id].payload or {}), f"{what}: payload of {hit.id}"
            same_vector(hit.vector, local[hit.id].vector, f"{what}: vector of {hit.id}")


class Both:
    """A collection that a server and local mode have in common."""

    def __init__(self, server, local, collection):
        self.server, self.local, self.collection = server, local, collection

    def do(self, method, **arguments):
        """The same call to both; the answers."""
        return [getattr(client, method)(collection_name=self.collection, **arguments) for client in (self.server, self.local)]

    def query(self, what="query", **arguments):
        ours, theirs = self.do("query_points", **arguments)
        same_hits(ours.points, theirs.points, what, arguments.get("offset", 0))
        return ours.points

    def scroll(self, what="scroll", **arguments):
        (ours, next_ours), (theirs, next_theirs) = self.do("scroll", **{"with_vectors": True, "limit": 1000, **arguments})
        same_records(ours, theirs, what)
        assert next_ours == next_theirs, what
        return ours

    def count(self, condition, what="count"):
        ours, theirs = self.do("count", count_filter=condition, exact=True)
        assert ours.count == theirs.count, f"{what}: {ours.count}, local mode has {theirs.count}: {condition!r}"
        return ours.count
