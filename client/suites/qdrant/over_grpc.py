"""Qdrant's own Python client over gRPC: every answer is compared with the client's local mode.

    python3 -m venv venv && venv/bin/pip install qdrant-client numpy
    venv/bin/python client/suites/qdrant/over_grpc.py 127.0.0.1:6334

The same calls go to the server with `prefer_grpc=True` and to `QdrantClient(":memory:")`. The client's REST port is one that
nobody listens on, so that no call can quietly take the other way. Calls that this client does not make any more (older ones do),
and messages that no client makes, are sent through the stubs that come with it. Each check prints its name; exits with 1 at the
first that fails. It is not called `grpc.py`: a script's folder is where Python looks for modules first.
"""
import asyncio
import datetime
import random
import sys
import uuid

import grpc
import numpy as np
from google.protobuf.timestamp_pb2 import Timestamp
from qdrant_client import AsyncQdrantClient, QdrantClient, models
from qdrant_client import grpc as wire

from vectors import NEAR, Both, rows, same_hits, same_records, sparse

COUNT = 200
KINDS = ["nut", "bolt", "screw", "nail"]


def client(kind, address, **more):
    host, port = address.rsplit(":", 1)
    return kind(host=host, port=1, grpc_port=int(port), prefer_grpc=True, timeout=30, check_compatibility=False, **more)


def refused(code, words, call, *arguments, **named):
    """The call must be refused with this code, and with these words in its message."""
    try:
        call(*arguments, **named)
    except grpc.RpcError as error:
        assert error.code() == code, f"{error.code()}: {error.details()}, not {code}"
        assert words in error.details(), f"{error.details()!r} does not say {words!r}"
    else:
        raise AssertionError(f"was taken, is to be refused with {code}")


def payload(rng, number):
    made = {
        "number": number,
        "kind": rng.choice(KINDS),
        "price": round(rng.uniform(0, 100), 2),
        "tags": rng.sample(KINDS, rng.randint(0, 3)),
        "title": rng.choice(["the quick brown fox", "a lazy dog", "a brown dog"]),
        "sold": rng.random() < 0.5,
        "day": (datetime.datetime(2024, 1, 1, 12) + datetime.timedelta(days=number)).isoformat() + "Z",
        "place": {"lon": round(rng.uniform(12, 14), 4), "lat": round(rng.uniform(51, 53), 4)},
        "parts": [{"name": rng.choice(KINDS), "count": rng.randint(0, 9)} for _ in range(rng.randint(0, 3))],
        "deep": {"list": [1, 2.5, None, "text", True, {"inner": [[1], []]}], "nothing": None, "empty": {}},
        "large": 2**53 + number,
    }
    for key in ("kind", "price", "tags", "place"):
        if rng.random() < 0.15:
            made[key] = None if rng.random() < 0.5 else made[key]
        elif rng.random() < 0.15:
            del made[key]
    return made


def point(rng, number):
    vectors = {"dense": [round(rng.uniform(-1, 1), 3) for _ in range(4)], "words": sparse(rng), "late": rows(rng)}
    if rng.random() < 0.2:
        del vectors[rng.choice(["words", "late"])]
    id = number if number % 3 else str(uuid.UUID(int=number))
    return models.PointStruct(id=id, vector=vectors, payload=payload(rng, number))


def settings():
    return {
        "vectors_config": {
            "dense": models.VectorParams(size=4, distance=models.Distance.DOT),
            "late": models.VectorParams(
                size=4,
                distance=models.Distance.COSINE,
                multivector_config=models.MultiVectorConfig(comparator=models.MultiVectorComparator.MAX_SIM),
            ),
        },
        "sparse_vectors_config": {"words": models.SparseVectorParams(modifier=models.Modifier.IDF)},
    }


def field(key, **condition):
    return models.FieldCondition(key=key, **condition)


def filters():
    """A name and a condition each."""
    day = datetime.datetime(2024, 3, 1, tzinfo=datetime.timezone.utc)
    square = [(12.5, 51.5), (13.5, 51.5), (13.5, 52.5), (12.5, 52.5), (12.5, 51.5)]
    hole = [(12.9, 51.9), (13.1, 51.9), (13.1, 52.1), (12.9, 52.1), (12.9, 51.9)]

    def ring(corners):
        return models.GeoLineString(points=[models.GeoPoint(lon=lon, lat=lat) for lon, lat in corners])

    bolts = field("parts[].name", match=models.MatchValue(value="bolt"))
    return {
        "keyword": field("kind", match=models.MatchValue(value="nut")),
        "integer": field("number", match=models.MatchValue(value=17)),
        "boolean": field("sold", match=models.MatchValue(value=True)),
        "any": field("kind", match=models.MatchAny(any=["nut", "nail"])),
        "any integer": field("number", match=models.MatchAny(any=[1, 5, 1000])),
        "except": field("kind", match=models.MatchExcept(**{"except": ["nut", "nail"]})),
        "except integer": field("number", match=models.MatchExcept(**{"except": [1, 2, 3]})),
        "in a list": field("tags", match=models.MatchValue(value="bolt")),
        "range": field("price", range=models.Range(gt=10.0, lte=60.5)),
        "range without end": field("number", range=models.Range(gte=150, lt=float("inf"))),
        "beyond every number": field("number", range=models.Range(gt=float("inf"))),
        "dates": field("day", range=models.DatetimeRange(gte=day, lt=day + datetime.timedelta(days=30))),
        "box": field("place", geo_bounding_box=models.GeoBoundingBox(
            top_left=models.GeoPoint(lon=12.5, lat=52.5), bottom_right=models.GeoPoint(lon=13.5, lat=51.5))),
        "circle": field("place", geo_radius=models.GeoRadius(center=models.GeoPoint(lon=13, lat=52), radius=40_000.0)),
        "polygon": field("place", geo_polygon=models.GeoPolygon(exterior=ring(square), interiors=[ring(hole)])),
        "count": field("tags", values_count=models.ValuesCount(gte=2)),
        "is empty": models.IsEmptyCondition(is_empty=models.PayloadField(key="tags")),
        "is null": models.IsNullCondition(is_null=models.PayloadField(key="price")),
        "ids": models.HasIdCondition(has_id=[1, 2, str(uuid.UUID(int=3)), 5000]),
        "has vector": models.HasVectorCondition(has_vector="words"),
        "within a list": bolts,
        "nested": models.NestedCondition(nested=models.Nested(key="parts", filter=models.Filter(
            must=[field("name", match=models.MatchValue(value="bolt")), field("count", range=models.Range(gt=4))]))),
        "clauses": models.Filter(
            must=[field("sold", match=models.MatchValue(value=False))],
            must_not=[bolts],
            should=[field("kind", match=models.MatchValue(value="nut")), field("price", range=models.Range(lt=30))],
        ),
        "two of three": models.Filter(min_should=models.MinShould(min_count=2, conditions=[
            field("sold", match=models.MatchValue(value=True)), bolts, field("price", range=models.Range(lt=50))])),
    }


def collections(server, name):
    """What a collection is created with is told again; aliases; indexes."""
    full = f"{name}-full"
    asked = {
        "vectors_config": models.VectorParams(
            size=8,
            distance=models.Distance.EUCLID,
            on_disk=True,
            hnsw_config=models.HnswConfigDiff(m=24),
            quantization_config=models.ProductQuantization(
                product=models.ProductQuantizationConfig(compression=models.CompressionRatio.X4)),
            datatype=models.Datatype.FLOAT16,
        ),
        "hnsw_config": models.HnswConfigDiff(m=12, ef_construct=80, full_scan_threshold=5000),
        "optimizers_config": models.OptimizersConfigDiff(indexing_threshold=3000, max_segment_size=9000),
        "quantization_config": models.BinaryQuantization(binary=models.BinaryQuantizationConfig(always_ram=True)),
        "wal_config": models.WalConfigDiff(wal_capacity_mb=16),
        "strict_mode_config": models.StrictModeConfig(enabled=False, max_query_limit=77),
        "shard_number": 2,
        "replication_factor": 1,
        "write_consistency_factor": 1,
        "on_disk_payload": True,
        "metadata": {"owner": "suite", "list": [1, 2.5, None]},
    }
    assert not server.collection_exists(full)
    assert server.create_collection(full, **asked)
    try:
        assert server.collection_exists(full)
        assert full in [one.name for one in server.get_collections().collections]
        told = server.get_collection(full).config
        assert told.params.vectors == asked["vectors_config"], told.params.vectors
        assert (told.hnsw_config.m, told.hnsw_config.ef_construct) == (12, 80)
        assert told.optimizer_config.indexing_threshold == 3000
        assert told.quantization_config == asked["quantization_config"], told.quantization_config
        assert told.wal_config.wal_capacity_mb == 16
        assert told.strict_mode_config.max_query_limit == 77
        assert (told.params.shard_number, told.params.on_disk_payload) == (2, True)
        assert told.metadata == asked["metadata"], told.metadata
        refused(grpc.StatusCode.ALREADY_EXISTS, full, server.create_collection, full, **asked)

        changed = {"indexing_threshold": 4000}
        assert server.update_collection(full, optimizers_config=models.OptimizersConfigDiff(**changed),
                                        hnsw_config=models.HnswConfigDiff(ef_construct=90))
        told = server.get_collection(full).config
        assert (told.optimizer_config.indexing_threshold, told.hnsw_config.ef_construct) == (4000, 90)
        assert told.hnsw_config.m == 12, "what is not named stays"

        indexes = {
            "keyword": models.KeywordIndexParams(type="keyword", is_tenant=True),
            "integer": models.IntegerIndexParams(type="integer", lookup=True, range=True),
            "float": models.PayloadSchemaType.FLOAT,
            "bool": models.PayloadSchemaType.BOOL,
            "geo": models.PayloadSchemaType.GEO,
            "datetime": models.DatetimeIndexParams(type="datetime", on_disk=True),
            "text": models.TextIndexParams(type="text", tokenizer=models.TokenizerType.WORD, lowercase=True, min_token_len=2),
            "uuid": models.PayloadSchemaType.UUID,
        }
        for kind, index in indexes.items():
            server.create_payload_index(full, f"field.{kind}", index, wait=True)
        schema = server.get_collection(full).payload_schema
        told = {path: one.data_type.value for path, one in schema.items()}
        assert told == {f"field.{kind}": kind for kind in indexes}, told
        text = schema["field.text"].params
        assert (text.tokenizer, text.lowercase, text.min_token_len) == (models.TokenizerType.WORD, True, 2), text
        assert schema["field.keyword"].params.is_tenant and schema["field.datetime"].params.on_disk
        server.delete_payload_index(full, "field.float", wait=True)
        assert "field.float" not in server.get_collection(full).payload_schema

        def change(*actions):
            return server.update_collection_aliases(list(actions))

        first, second = f"{name}-first", f"{name}-second"
        change(models.CreateAliasOperation(create_alias=models.CreateAlias(collection_name=full, alias_name=first)))
        assert server.count(first).count == 0
        change(models.RenameAliasOperation(rename_alias=models.RenameAlias(old_alias_name=first, new_alias_name=second)))
        assert [one.alias_name for one in server.get_collection_aliases(full).aliases] == [second]
        assert (second, full) in [(one.alias_name, one.collection_name) for one in server.get_aliases().aliases]
        change(models.DeleteAliasOperation(delete_alias=models.DeleteAlias(alias_name=second)))
        assert server.get_collection_aliases(full).aliases == []
        refused(grpc.StatusCode.NOT_FOUND, second, server.count, second)
    finally:
        assert server.delete_collection(full)
    assert not server.collection_exists(full)


def paged(client, name, **arguments):
    """All points, some at a time."""
    found, offset = [], None
    while True:
        page, offset = client.scroll(name, limit=33, offset=offset, with_vectors=True, **arguments)
        found += page
        if offset is None:
            return found


def same_store(both, when):
    """The same points with the same payloads and vectors, however they are asked for."""
    got, wanted = (paged(one, both.collection) for one in (both.server, both.local))
    same_records(got, wanted, when)
    counts = [one.count(both.collection, exact=True).count for one in (both.server, both.local)]
    assert counts[0] == counts[1] == len(wanted), f"{when}: {counts}"


def writes(both, rng):
    """Everything that writes; afterwards both hold the same."""
    first = [point(rng, number) for number in range(COUNT)]
    both.do("upsert", points=first[:120], wait=True)
    columns = first[120:150]
    both.do("upsert", points=models.Batch(
        ids=[one.id for one in columns],
        payloads=[one.payload for one in columns],
        vectors={"dense": [one.vector["dense"] for one in columns]},
    ))
    both.do("upload_points", points=first[150:], batch_size=16, wait=True)
    more = np.round(np.random.default_rng(3).uniform(-1, 1, (40, 4)), 3)
    both.do("upload_collection", vectors={"dense": more}, payload=[{"number": n} for n in range(500, 540)],
            ids=range(500, 540), batch_size=7, wait=True)
    same_store(both, "upserted")

    def where(**match):
        (key, value), = match.items()
        return models.Filter(must=[field(key, match=models.MatchValue(value=value))])

    ids = [1, 2, str(uuid.UUID(int=3))]
    both.do("set_payload", payload={"extra": {"a": 1}, "sold": None}, points=ids)
    both.do("set_payload", payload={"b": [2]}, key="extra", points=ids)
    both.do("set_payload", payload={"seen": True}, points=where(kind="nut"))
    both.do("overwrite_payload", payload={"number": 7, "only": "this"}, points=[7, 8])
    both.do("delete_payload", keys=["title", "deep.nothing"], points=where(kind="bolt"))
    both.do("clear_payload", points_selector=[10, 11])
    both.do("update_vectors", points=[
        models.PointVectors(id=4, vector={"dense": [1.0, 0.0, 0.5, 0.25], "words": sparse(rng)}),
        models.PointVectors(id=5, vector={"late": rows(rng)}),
    ])
    both.do("delete_vectors", vectors=["words"], points=[13, 14])
    same_store(both, "changed")
    both.do("batch_update_points", update_operations=[
        models.UpsertOperation(upsert=models.PointsList(points=[point(rng, 700), point(rng, 701)])),
        models.SetPayloadOperation(set_payload=models.SetPayload(payload={"batch": 1}, points=[700, 701])),
        models.OverwritePayloadOperation(overwrite_payload=models.SetPayload(payload={"number": 701}, points=[701])),
        models.DeletePayloadOperation(delete_payload=models.DeletePayload(keys=["kind"], points=[700])),
        models.ClearPayloadOperation(clear_payload=models.PointIdsList(points=[20])),
        models.UpdateVectorsOperation(update_vectors=models.UpdateVectors(
            points=[models.PointVectors(id=700, vector={"dense": [0.5, 0.5, 0.5, 0.5]})])),
        models.DeleteVectorsOperation(delete_vectors=models.DeleteVectors(vector=["late"], points=[700])),
        models.DeleteOperation(delete=models.PointIdsList(points=[22, 23])),
        models.DeleteOperation(delete=models.FilterSelector(filter=where(number=25))),
    ])
    same_store(both, "changed in a batch")
    both.do("delete", points_selector=[28, 29, 9999])
    both.do("delete", points_selector=where(number=31))
    same_store(both, "deleted")
    # Of a hit without a payload this client makes None over gRPC, and local mode an empty one.
    both.do("set_payload", payload={"number": 10}, points=[10, 11, 20])
    both.records("retrieved", ids=[1, str(uuid.UUID(int=3)), 28, 700], with_payload=["number", "deep.list"])


def reads(both, rng):
    for what, condition in filters().items():
        wanted = condition if isinstance(condition, models.Filter) else models.Filter(must=[condition])
        both.scroll(f"filter: {what}", scroll_filter=wanted)
        without = models.Filter(must_not=[wanted])
        both.scroll(f"filter: not {what}", scroll_filter=without)
        counts = [one.count(both.collection, count_filter=wanted).count for one in (both.server, both.local)]
        assert counts[0] == counts[1], f"{what}: {counts}"
        both.query(f"nearest, filter: {what}", query=[0.3, -0.2, 0.9, 0.1], using="dense", limit=50, query_filter=wanted)

    nut = models.Filter(must=[field("kind", match=models.MatchValue(value="nut"))])
    dense, words, late = [0.4, 0.1, -0.7, 0.2], sparse(rng, 8), rows(rng)
    for using, asked in (("dense", dense), ("words", words), ("late", late)):
        found = both.query(f"nearest: {using}", query=asked, using=using, limit=COUNT)
        both.query(f"nearest: {using}, a page", query=asked, using=using, limit=7, offset=5)
        middle = found[len(found) // 2].score - 3 * NEAR
        both.query(f"nearest: {using}, above", query=asked, using=using, limit=COUNT, score_threshold=middle)
    both.query("by a point", query=4, using="dense", limit=20)
    both.query("by a point that a UUID names", query=str(uuid.UUID(int=6)), using="dense", limit=20)
    both.query("exactly", query=dense, using="dense", limit=9, search_params=models.SearchParams(exact=True, hnsw_ef=64))
    both.query("some fields", query=dense, using="dense", limit=9, with_payload=["number", "deep.list"])
    both.query("all but some", query=dense, using="dense", limit=9,
               with_payload=models.PayloadSelectorExclude(exclude=["deep", "parts"]))
    both.query("no payload", query=dense, using="dense", limit=9, with_payload=False)
    liked = models.RecommendInput(positive=[1, [0.1, 0.9, 0.2, 0.4]], negative=[2],
                                  strategy=models.RecommendStrategy.AVERAGE_VECTOR)
    both.query("recommended", query=models.RecommendQuery(recommend=liked), using="dense", limit=20)
    both.query("various", query=models.NearestQuery(nearest=dense, mmr=models.Mmr(diversity=0.4, candidates_limit=30)),
               using="dense", limit=8)
    prefetch = [models.Prefetch(query=dense, using="dense", limit=30, filter=nut),
                models.Prefetch(query=words, using="words", limit=30),
                models.Prefetch(prefetch=[models.Prefetch(query=dense, using="dense", limit=40)],
                                query=late, using="late", limit=25)]
    for fusion in (models.Fusion.RRF, models.Fusion.DBSF):
        both.query(f"fused: {fusion.value}", prefetch=prefetch, query=models.FusionQuery(fusion=fusion), limit=12)
    both.query("fused with weights", prefetch=prefetch, query=models.RrfQuery(rrf=models.Rrf(k=9, weights=[3.0, 1.0, 0.5])),
               limit=12)
    formula = models.SumExpression(sum=[
        models.MultExpression(mult=[2.0, "$score"]),
        models.DivExpression(div=models.DivParams(left="number", right=100.0)),
        models.FieldCondition(key="kind", match=models.MatchValue(value="nut")),
    ])
    both.query("weighed by a formula", prefetch=prefetch[:2], limit=12,
               query=models.FormulaQuery(formula=formula, defaults={"number": 3}))
    feedback = models.RelevanceFeedbackInput(
        target=dense,
        feedback=[models.FeedbackItem(example=1, score=0.9), models.FeedbackItem(example=[0.1, 0.9, 0.2, 0.4], score=0.2)],
        strategy=models.NaiveFeedbackStrategy(naive=models.NaiveFeedbackStrategyParams(a=0.5, b=1.2, c=0.7)))
    both.query("turned by feedback", query=models.RelevanceFeedbackQuery(relevance_feedback=feedback), using="dense", limit=20)
    both.query("scored anew", prefetch=prefetch[:2], query=late, using="late", limit=12)

    # Orders and samples.
    for direction in models.Direction:
        order = models.OrderBy(key="number", direction=direction, start_from=40)
        got, wanted = (one.scroll(both.collection, order_by=order, limit=60)[0] for one in (both.server, both.local))
        assert [hit.payload["number"] for hit in got] == [hit.payload["number"] for hit in wanted], direction
        order = models.OrderByQuery(order_by=models.OrderBy(key="price", direction=direction))
        got, wanted = (one.query_points(both.collection, query=order, limit=30).points for one in (both.server, both.local))
        assert [hit.payload["price"] for hit in got] == [hit.payload["price"] for hit in wanted], direction
        both.checks += 2
    drawn = both.server.query_points(both.collection, query=models.SampleQuery(sample=models.Sample.RANDOM), limit=9).points
    assert len({hit.id for hit in drawn}) == 9

    # Several at once, groups, facets, counts.
    batch = [models.QueryRequest(query=dense, using="dense", limit=5, with_payload=True),
             models.QueryRequest(query=words, using="words", limit=5, filter=nut, with_payload=True)]
    got, wanted = (one.query_batch_points(both.collection, batch) for one in (both.server, both.local))
    for ours, theirs in zip(got, wanted, strict=True):
        same_hits(ours, theirs, "several at once")
    grouped = {"query": dense, "using": "dense", "group_by": "kind", "group_size": 3, "limit": 4}
    got, wanted = (one.query_points_groups(both.collection, **grouped).groups for one in (both.server, both.local))
    told = [[(group.id, [hit.id for hit in group.hits]) for group in groups] for groups in (got, wanted)]
    assert told[0] == told[1], told
    for key in ("kind", "tags", "sold", "number"):
        got, wanted = (
            {(hit.value, hit.count) for hit in one.facet(both.collection, key, limit=1000).hits}
            for one in (both.server, both.local)
        )
        assert got == wanted, f"facet {key}: {got} {wanted}"
        both.checks += 1


def older(both):
    """Calls that older clients make, against what this one calls them now."""
    points, name = both.server.grpc_points, both.collection
    dense = [0.4, 0.1, -0.7, 0.2]
    payload = wire.WithPayloadSelector(enable=True)

    def same(hits, what, **query):
        wanted = both.server.query_points(name, using="dense", **query).points
        got = [(hit.id.num or hit.id.uuid, round(hit.score, 4)) for hit in hits]
        assert got == [(hit.id, round(hit.score, 4)) for hit in wanted], what
        both.checks += 1

    search = wire.SearchPoints(collection_name=name, vector=dense, vector_name="dense", limit=7, with_payload=payload)
    same(points.Search(search).result, "search", query=dense, limit=7)
    for batch in points.SearchBatch(wire.SearchBatchPoints(collection_name=name, search_points=[search, search])).result:
        same(batch.result, "searches", query=dense, limit=7)
    groups = points.SearchGroups(wire.SearchPointGroups(
        collection_name=name, vector=dense, vector_name="dense", limit=3, group_by="kind", group_size=2)).result.groups
    wanted = both.server.query_points_groups(name, group_by="kind", query=dense, using="dense", limit=3, group_size=2).groups
    assert [group.id.string_value for group in groups] == [group.id for group in wanted]
    examples = {"positive": [wire.PointId(num=1)], "negative": [wire.PointId(num=2)], "using": "dense"}
    liked = models.RecommendQuery(recommend=models.RecommendInput(positive=[1], negative=[2]))
    recommend = wire.RecommendPoints(collection_name=name, limit=6, **examples)
    same(points.Recommend(recommend).result, "recommended", query=liked, limit=6)
    batch = wire.RecommendBatchPoints(collection_name=name, recommend_points=[recommend])
    same(points.RecommendBatch(batch).result[0].result, "recommended at once", query=liked, limit=6)
    groups = points.RecommendGroups(wire.RecommendPointGroups(
        collection_name=name, limit=3, group_by="kind", group_size=2, **examples)).result.groups
    wanted = both.server.query_points_groups(name, group_by="kind", query=liked, using="dense", limit=3, group_size=2).groups
    assert [group.id.string_value for group in groups] == [group.id for group in wanted]

    # Vectors as they were written before a message chose between their kinds.
    vectors = wire.Vectors(vectors=wire.NamedVectors(vectors={
        "dense": wire.Vector(data=[0.5, 0.25, 0.125, 1.0]),
        "words": wire.Vector(data=[2.0, 3.0], indices=wire.SparseIndices(data=[7, 3])),
        "late": wire.Vector(data=[1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0], vectors_count=2),
    }))
    older = wire.PointStruct(id=wire.PointId(num=800), vectors=vectors)
    points.Upsert(wire.UpsertPoints(collection_name=name, wait=True, points=[older]))
    both.local.upsert(name, [models.PointStruct(id=800, vector={
        "dense": [0.5, 0.25, 0.125, 1.0],
        "words": models.SparseVector(indices=[7, 3], values=[2.0, 3.0]),
        "late": [[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]],
    })])
    both.records("written as before", ids=[800])
    uneven = wire.Vector(data=[1.0] * 9, vectors_count=2)
    uneven = wire.PointStruct(id=wire.PointId(num=801), vectors=wire.Vectors(vectors=wire.NamedVectors(vectors={"late": uneven})))
    refused(grpc.StatusCode.INVALID_ARGUMENT, "points[0].vector", points.Upsert,
            wire.UpsertPoints(collection_name=name, points=[uneven]))


def errors(both):
    """Refusals have their codes and name what is wrong, and nothing is changed by them."""
    server, name = both.server, both.collection
    points, invalid = server.grpc_points, grpc.StatusCode.INVALID_ARGUMENT
    for call in (
        lambda: server.count("nowhere"),
        lambda: server.get_collection("nowhere"),
        lambda: server.scroll("nowhere"),
        lambda: server.query_points("nowhere", query=[1.0]),
        lambda: server.upsert("nowhere", [models.PointStruct(id=1, vector=[1.0])]),
        lambda: server.set_payload("nowhere", payload={"a": 1}, points=[1]),
        lambda: server.create_payload_index("nowhere", "a", models.PayloadSchemaType.KEYWORD),
        lambda: server.delete("nowhere", [1]),
    ):
        refused(grpc.StatusCode.NOT_FOUND, "nowhere", call)
    refused(invalid, "Vector dimension error", server.query_points, name, query=[1.0, 2.0], using="dense")
    refused(invalid, "other", server.query_points, name, query=[1.0], using="other")
    refused(invalid, "limit", server.query_points, name, query=[1.0] * 4, using="dense", limit=0)
    refused(invalid, "points[1].vector", server.upsert, name, [
        models.PointStruct(id=900, vector={"dense": [1.0] * 4}), models.PointStruct(id=901, vector={"dense": [1.0] * 5})])
    refused(invalid, "timeout", server.grpc_points.Count, wire.CountPoints(collection_name=name, timeout=0))

    nan, inf = float("nan"), float("inf")

    def where(**condition):
        return wire.Filter(must=[wire.Condition(field=wire.FieldCondition(key="number", **condition))])

    # Conditions that a client did not fill in, or that this server is too old for, must never count as met by every point.
    nothing = {
        "no condition": where(),
        "a match without its value": where(match=wire.Match()),
        "no number": where(range=wire.Range(lt=nan)),
        "no date": where(datetime_range=wire.DatetimeRange(lt=Timestamp(seconds=2**62))),
        "an empty condition": wire.Filter(must=[wire.Condition()]),
        "not an empty condition": wire.Filter(must_not=[wire.Condition()]),
        "no circle": where(geo_radius=wire.GeoRadius(center=wire.GeoPoint(lon=nan, lat=1), radius=1)),
        "no radius": where(geo_radius=wire.GeoRadius(center=wire.GeoPoint(lon=1, lat=1), radius=nan)),
    }
    for what, wrong in nothing.items():
        try:
            refused(invalid, "", points.Delete, wire.DeletePoints(
                collection_name=name, points=wire.PointsSelector(filter=wrong)))
            refused(invalid, "", points.Count, wire.CountPoints(collection_name=name, filter=wrong))
            refused(invalid, "", points.SetPayload, wire.SetPayloadPoints(
                collection_name=name, payload={"a": wire.Value(bool_value=True)}, points_selector=wire.PointsSelector(filter=wrong)))
        except AssertionError as error:
            raise AssertionError(f"{what}: {error}") from error
    refused(invalid, "", points.Delete, wire.DeletePoints(collection_name=name))
    refused(invalid, "", points.Delete, wire.DeletePoints(collection_name=name, points=wire.PointsSelector()))
    refused(invalid, "", points.ClearPayload, wire.ClearPayloadPoints(collection_name=name))
    refused(invalid, "ids", points.Get, wire.GetPoints(collection_name=name, ids=[wire.PointId()]))
    refused(invalid, "query", points.Query, wire.QueryPoints(collection_name=name, query=wire.Query()))
    for number in (nan, inf):
        value = {"deep": wire.Value(list_value=wire.ListValue(values=[wire.Value(double_value=number)]))}
        wrong = wire.PointStruct(id=wire.PointId(num=902), payload=value, vectors=wire.Vectors())
        refused(invalid, "points[0].payload", points.Upsert, wire.UpsertPoints(collection_name=name, points=[wrong]))
        refused(invalid, "payload", points.SetPayload, wire.SetPayloadPoints(
            collection_name=name, payload=value, points_selector=wire.PointsSelector(points=wire.PointsIdsList(ids=[wire.PointId(num=1)]))))
    good = wire.PointStruct(id=wire.PointId(num=1), vectors=wire.Vectors())
    refused(invalid, "update_mode", points.Upsert, wire.UpsertPoints(collection_name=name, points=[good], update_mode=17))
    same_store(both, "after all that was refused")
    assert server.retrieve(name, [900, 901, 902]) == []

    unimplemented = grpc.StatusCode.UNIMPLEMENTED
    discover = models.DiscoverQuery(discover=models.DiscoverInput(target=1, context=[]))
    for query, word in ((discover, "discover"), (models.ContextQuery(context=[]), "context")):
        try:
            refused(unimplemented, word, server.query_points, name, query=query, using="dense")
        except AssertionError as error:
            # A later version may have it.
            assert "was taken" in str(error), error
    refused(unimplemented, "shard", server.create_shard_key, name, "a")


def health(address):
    """The standard services of gRPC, byte by byte, since their packages do not come with Qdrant's client."""
    with grpc.insecure_channel(address) as channel:
        check = channel.unary_unary("/grpc.health.v1.Health/Check", lambda data: data, lambda data: data)
        for service in (b"", b"qdrant.Qdrant", b"qdrant.Points", b"qdrant.Collections", b"nearring.v1.Nearring"):
            asked = b"\x0a" + bytes([len(service)]) + service if service else b""
            assert check(asked) == b"\x08\x01", f"{service} is serving"
        for version in ("v1", "v1alpha"):
            method = f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo"
            reflect = channel.stream_stream(method, lambda data: data, lambda data: data)
            told = b"".join(reflect(iter([b"\x3a\x01*"])))
            for service in (b"qdrant.Points", b"qdrant.Collections", b"nearring.v1.Nearring", b"grpc.health.v1.Health"):
                assert service in told, f"{version} does not tell {service}"


async def asynchronous(address, name):
    """`AsyncQdrantClient`, many calls at once, with a key and with compression."""
    server = client(AsyncQdrantClient, address, api_key="any", https=False, grpc_compression=grpc.Compression.Gzip)
    await server.create_collection(name, vectors_config=models.VectorParams(size=2, distance=models.Distance.DOT))
    try:
        async def put(number):
            made = models.PointStruct(id=number, vector=[number, 1.0], payload={"number": number, "text": "x" * 5000})
            await server.upsert(name, [made], wait=True)

        await asyncio.gather(*(put(number) for number in range(40)))
        even = models.Filter(must=[models.FieldCondition(key="number", match=models.MatchAny(any=list(range(0, 40, 2))))])
        found = await server.query_points(name, query=[1.0, 0.0], query_filter=even, limit=3)
        assert [hit.id for hit in found.points] == [38, 36, 34]
        page, rest = await server.scroll(name, limit=15)
        assert [one.id for one in page] == list(range(15)) and rest == 15
        await server.delete(name, even)
        assert (await server.count(name)).count == 20
    finally:
        await server.delete_collection(name)
        await server.close()


def run(address):
    rng = random.Random(11)
    server, local = client(QdrantClient, address), QdrantClient(":memory:")
    both = Both(server, local, f"grpc-{uuid.uuid4().hex[:8]}")
    try:
        both.do("create_collection", **settings())
        checks = {
            "health": lambda: health(address),
            "collections": lambda: collections(server, both.collection),
            "writes": lambda: writes(both, rng),
            "reads": lambda: reads(both, rng),
            "older calls": lambda: older(both),
            "errors": lambda: errors(both),
            "asynchronous": lambda: asyncio.run(asynchronous(address, f"{both.collection}-async")),
        }
        for what, check in checks.items():
            check()
            print(f"{what}: passed", flush=True)
    finally:
        server.delete_collection(both.collection)
    print(f"{both.checks} comparisons with local mode, all equal")


if __name__ == "__main__":
    run(sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:6334")
