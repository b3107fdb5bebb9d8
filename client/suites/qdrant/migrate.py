"""`QdrantClient.migrate` of Qdrant's own Python client: from local mode into a server and back, and between two servers.

    python3 -m venv venv && venv/bin/pip install qdrant-client numpy
    venv/bin/python client/suites/qdrant/migrate.py http://127.0.0.1:6333 http://127.0.0.1:16337

Two servers are two clusters, as of `nearring dev --data a` and `nearring dev --data b --port-base 16333` (HTTP is at N+4). With
one URL nothing is copied from server to server, and the script says so. Everything is done over REST, then over gRPC.

Each copy must have the same settings, points (ids, payloads, vectors), payload indexes and answers as where it came from. What
local mode does not keep (payload indexes, most settings) is not expected back from it. Exits with 1 after the first check that
fails, naming it.
"""
import random
import sys
import uuid
import warnings

from qdrant_client import QdrantClient, models

from vectors import COUNT, points, rows, same_hits, same_records, settings, sparse

# Local mode searches exactly whatever is asked, and warns of that.
warnings.filterwarnings("ignore", message="Local mode performs exact")


def connect(url, grpc=False):
    """`nearring dev --port-base N` has gRPC at N and HTTP at N + 4; otherwise gRPC is one above."""
    port = int(url.rsplit(":", 1)[1])
    grpc_port = port + 1 if port == 6333 else port - 4
    return QdrantClient(url=url, timeout=60, prefer_grpc=grpc, grpc_port=grpc_port)


def more_points(rng):
    """UUIDs, in both spellings, points without vectors or payload, and payloads of every kind."""
    value = {"deep": {"list": [1, 2.5, None, {"x": True}], "text": "ß → ∞"}, "empty": [], "big": 2**53 - 1}
    return [
        models.PointStruct(id=str(uuid.UUID(int=7)), vector={"dense": [0.1, 0.2, 0.3, 0.4]}, payload=value),
        models.PointStruct(id=uuid.UUID(int=8).hex, vector={"words": sparse(rng)}, payload=None),
        models.PointStruct(id=2**63 - 1, vector={"late": rows(rng)}, payload={}),
        models.PointStruct(id=COUNT + 5, vector={}, payload={"group": 3}),
    ]


def fill(client, name, seed, extra=True):
    rng = random.Random(seed)
    client.create_collection(name, **settings())
    client.upsert(name, points(rng), wait=True)
    if extra:
        client.upsert(name, more_points(rng), wait=True)
    plain = name + "-plain"
    client.create_collection(plain, vectors_config=models.VectorParams(size=3, distance=models.Distance.EUCLID))
    client.upsert(plain, [models.PointStruct(id=at, vector=[at, 0.5, -at], payload={"at": at}) for at in range(10)])
    client.create_collection(name + "-empty", vectors_config={"a": models.VectorParams(size=2, distance="Dot")})
    return [name, plain, name + "-empty"]


def vectors_of(client, name):
    params = client.get_collection(name).config.params
    told = {}
    for vector, of in (params.vectors.items() if isinstance(params.vectors, dict) else [("", params.vectors)]):
        told[vector] = (of.size, of.distance, of.multivector_config)
    for vector, of in (params.sparse_vectors or {}).items():
        told[vector] = ("sparse", of.modifier or models.Modifier.NONE)
    return told


def everything(client, name):
    records, after = client.scroll(name, limit=1000, with_vectors=True)
    assert after is None
    # Local mode lists in the order of writing.
    return sorted(records, key=lambda record: (isinstance(record.id, str), record.id))


def named(records):
    """The only vector of a collection under a name, as the others are."""
    for record in records:
        if isinstance(record.vector, list):
            record.vector = {"": record.vector}
        record.payload = record.payload or {}
    return records


def same(source, target, names, what):
    for name in names:
        where = f"{what}: {name}"
        settings_of = [vectors_of(client, name) for client in (source, target)]
        assert settings_of[0] == settings_of[1], f"{where}: {settings_of}"
        counts = [client.count(name, exact=True).count for client in (source, target)]
        assert counts[0] == counts[1], f"{where}: counts {counts}"
        same_records(named(everything(target, name)), named(everything(source, name)), where)
    rng = random.Random(5)
    exact = models.SearchParams(exact=True)
    for asked, using in [([0.3, -0.2, 0.9, 0.1], "dense"), (sparse(rng, 8), "plain"), (rows(rng), "late")]:
        wanted = {"query": asked, "using": using, "limit": 50, "search_params": exact}
        both = [client.query_points(names[0], **wanted) for client in (target, source)]
        same_hits(*both, f"{what}: search {using}")


def drop(client, names):
    for name in names:
        client.delete_collection(name)


def into_a_server(server, what):
    local, name = QdrantClient(":memory:"), f"migrate-{uuid.uuid4().hex[:8]}"
    names = fill(local, name, 7)
    try:
        local.migrate(server, collection_names=names, batch_size=64)
        same(local, server, names, what)
        # Once more is refused, and changes nothing; unless it is asked to replace.
        try:
            local.migrate(server, collection_names=names)
        except ValueError as error:
            assert "already exist" in str(error), error
        else:
            raise AssertionError(f"{what}: a collision was not seen")
        local.delete(name, points_selector=models.PointIdsList(points=list(range(50))))
        local.migrate(server, collection_names=names, recreate_on_collision=True)
        same(local, server, names, f"{what}, replaced")
    finally:
        drop(server, names)


def out_of_a_server(server, what):
    local, name = QdrantClient(":memory:"), f"migrate-{uuid.uuid4().hex[:8]}"
    names = fill(server, name, 8)
    try:
        server.migrate(local, collection_names=names, batch_size=50)
        same(server, local, names, what)
    finally:
        drop(server, names)


def between_servers(one, other, what):
    name = f"migrate-{uuid.uuid4().hex[:8]}"
    names = fill(one, name, 9)
    try:
        hnsw, optimizers = models.HnswConfigDiff(m=24, ef_construct=150), models.OptimizersConfigDiff(deleted_threshold=0.4)
        one.update_collection(name, hnsw_config=hnsw, optimizers_config=optimizers)
        one.create_payload_index(name, "group", models.PayloadSchemaType.INTEGER)
        words = models.TextIndexParams(type="text", tokenizer=models.TokenizerType.WORD, lowercase=True)
        one.create_payload_index(name, "text", words)
        one.create_payload_index(name, "deep.text", models.KeywordIndexParams(type="keyword", is_tenant=False))
        one.migrate(other, collection_names=names)
        same(one, other, names, what)
        before, after = one.get_collection(name), other.get_collection(name)
        assert before.config == after.config, f"{what}: {before.config}\n{after.config}"
        assert before.payload_schema == after.payload_schema, f"{what}: {before.payload_schema}\n{after.payload_schema}"
        assert set(after.payload_schema) == {"group", "text", "deep.text"}, after.payload_schema
    finally:
        drop(one, names)
        drop(other, [name for name in names if other.collection_exists(name)])


def run(urls):
    ran = []
    for grpc in (False, True):
        how = "gRPC" if grpc else "REST"
        server = connect(urls[0], grpc)
        into_a_server(server, f"local mode to server over {how}")
        out_of_a_server(server, f"server to local mode over {how}")
        ran += ["in", "out"]
        if len(urls) > 1:
            between_servers(server, connect(urls[1], grpc), f"server to server over {how}")
            ran.append("across")
    if len(urls) < 2:
        print("one URL: nothing was copied from server to server")
    print(f"{len(ran)} copies, all equal to where they came from")


if __name__ == "__main__":
    run(sys.argv[1:] or ["http://127.0.0.1:6333"])
