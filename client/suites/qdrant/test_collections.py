"""Collections, aliases, settings, and what the client asks a server about itself."""
import time
import uuid
import warnings

import pytest
from qdrant_client import QdrantClient, models


@pytest.fixture
def name(server):
    name = f"suite-{uuid.uuid4().hex[:8]}"
    yield name
    server.delete_collection(name)


def test_the_version_is_no_reason_to_warn(transport):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # There is no TLS here: a key over plain HTTP is worth a warning, which is not ours.
        QdrantClient(**{**transport, "api_key": None}).get_collections()


def test_comes_and_goes(server, name):
    assert not server.collection_exists(name)
    assert server.create_collection(name, vectors_config=models.VectorParams(size=4, distance=models.Distance.EUCLID))
    assert server.collection_exists(name)
    assert name in [collection.name for collection in server.get_collections().collections]
    with pytest.raises(Exception, match="already exists"):
        server.create_collection(name, vectors_config=models.VectorParams(size=4, distance=models.Distance.EUCLID))
    assert server.delete_collection(name)
    assert not server.collection_exists(name)
    with pytest.raises(Exception, match="Not found: Collection"):
        server.get_collection(name)
    assert not server.delete_collection(name)


def test_settings_are_told_again(server, name):
    server.create_collection(
        name,
        vectors_config={
            "a": models.VectorParams(size=4, distance=models.Distance.COSINE, on_disk=True, hnsw_config=models.HnswConfigDiff(m=8)),
            "b": models.VectorParams(size=2, distance=models.Distance.DOT),
        },
        sparse_vectors_config={"s": models.SparseVectorParams(modifier=models.Modifier.IDF)},
        shard_number=2,
        replication_factor=1,
        write_consistency_factor=1,
        on_disk_payload=False,
        hnsw_config=models.HnswConfigDiff(m=24, ef_construct=150, full_scan_threshold=5000),
        optimizers_config=models.OptimizersConfigDiff(indexing_threshold=1234, default_segment_number=2),
        quantization_config=models.ScalarQuantization(scalar=models.ScalarQuantizationConfig(type=models.ScalarType.INT8, quantile=0.9)),
        metadata={"owner": "suite"},
    )
    config = server.get_collection(name).config
    assert (config.params.vectors["a"].size, config.params.vectors["a"].distance, config.params.vectors["a"].on_disk) == (4, "Cosine", True)
    assert config.params.sparse_vectors["s"].modifier == models.Modifier.IDF
    assert (config.params.shard_number, config.params.replication_factor) == (2, 1)
    assert config.params.on_disk_payload is False
    assert (config.hnsw_config.m, config.hnsw_config.ef_construct, config.hnsw_config.full_scan_threshold) == (24, 150, 5000)
    assert config.optimizer_config.indexing_threshold == 1234
    assert config.quantization_config.scalar.quantile == pytest.approx(0.9)
    assert config.metadata == {"owner": "suite"}
    server.update_collection(
        name,
        optimizers_config=models.OptimizersConfigDiff(indexing_threshold=99),
        collection_params=models.CollectionParamsDiff(on_disk_payload=True),
        vectors_config={"a": models.VectorParamsDiff(on_disk=False)},
    )
    config = server.get_collection(name).config
    assert config.optimizer_config.indexing_threshold == 99
    assert config.params.on_disk_payload is True
    assert config.params.vectors["a"].on_disk is False


def test_the_unnamed_vector_by_its_empty_name(server, name):
    """As LangChain creates collections."""
    server.create_collection(name, vectors_config={"": models.VectorParams(size=4, distance=models.Distance.COSINE, on_disk=True)})
    vectors = server.get_collection(name).config.params.vectors
    vectors = vectors[""] if isinstance(vectors, dict) else vectors
    assert (vectors.size, vectors.distance, vectors.on_disk) == (4, "Cosine", True)


def test_turns_green(server, name):
    server.create_collection(name, vectors_config=models.VectorParams(size=4, distance=models.Distance.COSINE))
    server.upload_collection(name, vectors=[[1.0, float(at), 2.0, 3.0] for at in range(300)], wait=True)
    deadline = time.monotonic() + 60
    while server.get_collection(name).status != models.CollectionStatus.GREEN:
        assert time.monotonic() < deadline, "not green within a minute"
        time.sleep(0.2)
    assert server.get_collection(name).points_count == 300


def test_recreated(server, name):
    for _ in range(2):
        if server.collection_exists(name):
            server.delete_collection(name)
        server.create_collection(name, vectors_config=models.VectorParams(size=2, distance=models.Distance.DOT))
        assert server.count(name).count == 0
        server.upsert(name, [models.PointStruct(id=1, vector=[1.0, 2.0])])


def test_aliases(server, name):
    other = f"{name}-2"
    for collection in (name, other):
        server.create_collection(collection, vectors_config=models.VectorParams(size=2, distance=models.Distance.DOT))
    try:
        alias, moved = f"{name}-alias", f"{name}-moved"
        create = models.CreateAliasOperation(create_alias=models.CreateAlias(collection_name=name, alias_name=alias))
        assert server.update_collection_aliases([create])
        server.upsert(alias, [models.PointStruct(id=1, vector=[1.0, 2.0])])
        assert server.count(name).count == 1
        assert [(told.alias_name, told.collection_name) for told in server.get_collection_aliases(name).aliases] == [(alias, name)]
        # In one step to another collection, under another name.
        server.update_collection_aliases([
            models.DeleteAliasOperation(delete_alias=models.DeleteAlias(alias_name=alias)),
            models.CreateAliasOperation(create_alias=models.CreateAlias(collection_name=other, alias_name=alias)),
            models.RenameAliasOperation(rename_alias=models.RenameAlias(old_alias_name=alias, new_alias_name=moved)),
        ])
        assert server.count(moved).count == 0
        assert (moved, other) in [(told.alias_name, told.collection_name) for told in server.get_aliases().aliases]
        assert server.get_collection_aliases(name).aliases == []
    finally:
        server.delete_collection(other)
