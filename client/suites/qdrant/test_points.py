"""Points written, read, changed and deleted, in every form that the client has: afterwards both sides hold the same."""
import uuid

import numpy as np
import pytest
from qdrant_client import models

Field = models.FieldCondition
GROUP = models.Filter(must=[Field(key="group", match=models.MatchValue(value="g1"))])


def test_written_as_lists_and_columns(own):
    own.scroll("as sent")
    columns = models.Batch(
        ids=[1001, 1002, str(uuid.UUID(int=7))],
        vectors={"dot": [[1.0, 2.0, 3.0, 4.0], [0.0, 1.0, 0.0, 1.0], [4.0, 3.0, 2.0, 1.0]]},
        payloads=[{"number": 1001}, {}, {"group": "g1"}],
    )
    for answer in own.do("upsert", points=columns, wait=True, ordering=models.WriteOrdering.STRONG):
        assert answer.status == models.UpdateStatus.COMPLETED
    # The whole point is replaced: payload and vectors that are not sent again are gone.
    own.do("upsert", points=[models.PointStruct(id=1, vector={"dot": [9.0, 9.0, 9.0, 9.0]}, payload={"only": "this"})])
    own.scroll("columns and replaced")


def test_uploads(own):
    more = [models.PointStruct(id=2000 + at, vector={"dot": [float(at)] * 4}, payload={"number": at}) for at in range(130)]
    own.do("upload_points", points=more, batch_size=32, parallel=1, wait=True)
    own.do("upload_collection", ids=range(3000, 3010), vectors={"dot": np.array([[1.0, 0.0, 0.0, at] for at in range(10)])}, payload=[{"n": at} for at in range(10)], wait=True)  # fmt: skip
    own.scroll("uploaded")


def test_unnamed_vector(server):
    name = f"suite-{uuid.uuid4().hex[:8]}"
    server.create_collection(name, vectors_config=models.VectorParams(size=3, distance=models.Distance.COSINE))
    try:
        server.upsert(name, points=models.Batch(ids=[1, 2], vectors=[[1.0, 0.0, 0.0], [0.0, 3.0, 4.0]]))
        # Vectors of cosine collections are told normalized, as Qdrant does.
        assert server.retrieve(name, [2], with_vectors=True)[0].vector == pytest.approx([0.0, 0.6, 0.8], abs=1e-6)
        assert server.query_points(name, query=[0.0, 1.0, 0.0]).points[0].id == 2
    finally:
        server.delete_collection(name)


def test_any_text_is_an_id(server):
    """More than Qdrant takes: LangChain and others send such ids."""
    name = f"suite-{uuid.uuid4().hex[:8]}"
    server.create_collection(name, vectors_config=models.VectorParams(size=2, distance=models.Distance.DOT))
    try:
        server.upsert(name, [models.PointStruct(id=id, vector=[1.0, 1.0]) for id in (1, "1", "chapter 3/§2", uuid.uuid4().hex)])
        assert server.count(name).count == 4
        assert {type(record.id) for record in server.retrieve(name, [1, "1"])} == {int, str}
        server.delete(name, ["chapter 3/§2"])
        assert server.retrieve(name, ["chapter 3/§2"]) == []
    finally:
        server.delete_collection(name)


def test_retrieved(both, points):
    ids = [points[0].id, points[1].id, points[5].id, 99_999]
    for chosen in (
        {},
        {"with_payload": False, "with_vectors": True},
        {"with_payload": ["group", "deep.er"]},
        {"with_payload": models.PayloadSelectorExclude(exclude=["text", "items[].size"])},
        {"with_payload": models.PayloadSelectorInclude(include=["items[].kind", "place"])},
        {"with_vectors": ["dot"]},
    ):
        ours, theirs = both.do("retrieve", ids=ids, **chosen)
        theirs = {record.id: record for record in theirs}
        assert {record.id for record in ours} == set(theirs), chosen
        for record in ours:
            # Over gRPC no payload and an empty one are the same.
            assert (record.payload or {}) == (theirs[record.id].payload or {}), chosen
            assert (record.vector or {}).keys() == (theirs[record.id].vector or {}).keys(), chosen


@pytest.mark.parametrize("consistency", [1, models.ReadConsistencyType.MAJORITY, models.ReadConsistencyType.QUORUM, models.ReadConsistencyType.ALL])  # fmt: skip
def test_read_parameters(both, consistency):
    server = both.server
    assert len(server.retrieve(both.collection, [1], consistency=consistency)) == 1
    assert len(server.scroll(both.collection, limit=5, consistency=consistency, timeout=20)[0]) == 5
    assert server.query_points(both.collection, query=[1.0] * 4, using="dot", consistency=consistency, timeout=20).points


@pytest.mark.parametrize("wait", [True, False])
@pytest.mark.parametrize("ordering", list(models.WriteOrdering))
def test_write_parameters(own, wait, ordering):
    """Whatever is asked: what was answered can be read."""
    own.server.set_payload(own.collection, payload={"mark": 1}, points=[1, 2], wait=wait, ordering=ordering)
    own.server.delete(own.collection, points_selector=[4], wait=wait, ordering=ordering)
    marked = models.Filter(must=[Field(key="mark", match=models.MatchValue(value=1))])
    assert own.server.count(own.collection, count_filter=marked).count == 2
    assert own.server.retrieve(own.collection, [4]) == []


def test_deleted(own, points):
    own.do("delete", points_selector=[points[0].id, 1, 2, 77_777])
    own.scroll("by id")
    own.do("delete", points_selector=models.PointIdsList(points=[4, 5]))
    own.do("delete", points_selector=models.FilterSelector(filter=GROUP))
    assert own.count(GROUP) == 0
    own.do("delete", points_selector=models.Filter(must=[Field(key="flag", match=models.MatchValue(value=True))]))
    own.scroll("by filter")


def test_payloads(own):
    for method, arguments in [
        ("set_payload", {"payload": {"new": [1, {"a": None}], "group": "g9"}, "points": [1, 2, 4]}),
        ("set_payload", {"payload": {"by": "filter"}, "points": GROUP}),
        ("set_payload", {"payload": {"by": "selector"}, "points": models.FilterSelector(filter=GROUP)}),
        ("set_payload", {"payload": {"value": 5, "more": 6}, "points": [5, 7, 8], "key": "deep.er"}),
        ("set_payload", {"payload": {"size": 99}, "points": [5, 7, 8, 10, 11], "key": "items[0]"}),
        ("set_payload", {"payload": {"size": 98}, "points": [13, 14, 16, 17], "key": "items[]"}),
        ("overwrite_payload", {"payload": {"alone": True}, "points": [10, 11]}),
        ("delete_payload", {"keys": ["text", "nobody"], "points": [1, 13]}),
        ("delete_payload", {"keys": ["deep.er.value", "items[].size"], "points": [14, 16, 17]}),
        ("delete_payload", {"keys": ["place"], "points": GROUP}),
        ("clear_payload", {"points_selector": [19, 20]}),
        ("clear_payload", {"points_selector": models.FilterSelector(filter=models.Filter(must=[Field(key="number", range=models.Range(gt=200))]))}),
    ]:  # fmt: skip
        own.do(method, **arguments, wait=True)
        own.scroll(f"{method} {arguments}")


def test_vectors(own):
    changed = [
        models.PointVectors(id=1, vector={"dot": [5.0, 5.0, 5.0, 5.0]}),
        models.PointVectors(id=2, vector={"words": models.SparseVector(indices=[3, 1], values=[1.0, 2.0]), "euclid": [0.5] * 6}),
    ]
    own.do("update_vectors", points=changed)
    own.do("delete_vectors", vectors=["cosine", "words"], points=[4, 5, 7])
    own.do("delete_vectors", vectors=["euclid"], points=models.FilterSelector(filter=GROUP))
    own.scroll("vectors")
    for name in ("cosine", "words", "euclid"):
        own.count(models.Filter(must_not=[models.HasVectorCondition(has_vector=name)]))
    own.query("changed", query=[1.0] * 4, using="dot", limit=20)


def test_batch_of_updates(own):
    operations = [
        models.UpsertOperation(upsert=models.PointsList(points=[models.PointStruct(id=5000, vector={"dot": [1.0] * 4}, payload={"a": 1})])),
        models.SetPayloadOperation(set_payload=models.SetPayload(payload={"b": 2}, points=[5000, 1])),
        models.OverwritePayloadOperation(overwrite_payload=models.SetPayload(payload={"c": 3}, points=[2])),
        models.DeletePayloadOperation(delete_payload=models.DeletePayload(keys=["a"], points=[5000])),
        models.ClearPayloadOperation(clear_payload=models.PointIdsList(points=[4])),
        models.UpdateVectorsOperation(update_vectors=models.UpdateVectors(points=[models.PointVectors(id=5, vector={"dot": [2.0] * 4})])),
        models.DeleteVectorsOperation(delete_vectors=models.DeleteVectors(points=[7], vector=["dot"])),
        models.DeleteOperation(delete=models.PointIdsList(points=[8])),
        models.DeleteOperation(delete=models.FilterSelector(filter=GROUP)),
    ]  # fmt: skip
    ours, theirs = own.do("batch_update_points", update_operations=operations, wait=True)
    assert len(ours) == len(theirs) and all(answer.status == models.UpdateStatus.COMPLETED for answer in ours)
    own.scroll("batch")


def test_pages(both):
    """Every point once, in the same order, page by page."""
    offset, seen = None, []
    while True:
        (ours, next_ours), (theirs, next_theirs) = both.do("scroll", limit=37, offset=offset, with_payload=False)
        assert [record.id for record in ours] == [record.id for record in theirs] and next_ours == next_theirs
        seen += [record.id for record in ours]
        offset = next_ours
        if offset is None:
            break
    assert len(seen) == len(set(seen)) == both.server.count(both.collection).count


@pytest.mark.parametrize("direction", list(models.Direction))
@pytest.mark.parametrize("key", ["number", "price", "when"])
def test_ordered(both, key, direction):
    both.server.create_payload_index(both.collection, key, {"number": "integer", "price": "float", "when": "datetime"}[key])
    starts = {"number": [None, 100], "price": [None, 40.5], "when": [None, "2017-03-04T00:00:00Z"]}[key]
    for start in starts:
        order = models.OrderBy(key=key, direction=direction, start_from=start)
        (ours, _), (theirs, _) = both.do("scroll", order_by=order, limit=50)
        assert [record.order_value for record in ours] == [record.order_value for record in theirs]
        assert {record.id for record in ours[:40]} <= {record.id for record in theirs}


def test_facets(both):
    for field, kind in (("group", "keyword"), ("tags", "keyword"), ("number", "integer"), ("flag", "bool")):
        both.server.create_payload_index(both.collection, field, kind)
        for condition in (None, models.Filter(must=[Field(key="price", range=models.Range(lt=50))])):
            ours, theirs = both.do("facet", key=field, facet_filter=condition, limit=1000, exact=True)
            assert {(hit.value, hit.count) for hit in ours.hits} == {(hit.value, hit.count) for hit in theirs.hits}
            few = both.server.facet(both.collection, key=field, facet_filter=condition, limit=3, exact=True)
            assert [hit.count for hit in few.hits] == sorted((hit.count for hit in theirs.hits), reverse=True)[:3]


@pytest.mark.parametrize(
    "wrong",
    [
        {"dot": [1.0]},
        {"nobody": [1.0]},
        {"dot": models.SparseVector(indices=[1], values=[1.0])},
        {"words": models.SparseVector(indices=[1, 1], values=[1.0, 2.0])},
    ],
)
def test_refused_points_change_nothing(own, wrong):
    before = own.server.count(own.collection).count
    good = models.PointStruct(id=9000, vector={"dot": [1.0] * 4})
    with pytest.raises(Exception) as refused:
        own.server.upsert(own.collection, [good, models.PointStruct(id=9001, vector=wrong)])
    assert "400" in str(refused.value) or "INVALID_ARGUMENT" in str(refused.value)
    assert own.server.count(own.collection).count == before
