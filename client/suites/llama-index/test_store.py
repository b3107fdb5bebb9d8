"""LlamaIndex's Qdrant store: nodes added, asked for by vector, filter and both kinds of vectors, changed and deleted."""
import os
import uuid

import pytest
from llama_index.core.schema import NodeRelationship, RelatedNodeInfo, TextNode
from llama_index.core.vector_stores.types import (
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
)
from llama_index.vector_stores.qdrant import QdrantVectorStore
from qdrant_client import AsyncQdrantClient, QdrantClient

URL = os.environ["QDRANT_URL"]
VOCABULARY = ["amber", "birch", "cedar", "dune", "ember", "fjord"]


def words(texts):
    """A sparse vector of each text: its words."""
    indices, values = [], []
    for text in texts:
        known = sorted({VOCABULARY.index(word) for word in text.split() if word in VOCABULARY})
        indices.append(known)
        values.append([1.0] * len(known))
    return indices, values


def nodes():
    made = []
    for at in range(12):
        node = TextNode(
            id_=str(uuid.UUID(int=at + 1)),
            text=f"{VOCABULARY[at % 6]} and {VOCABULARY[(at + 1) % 6]}",
            metadata={"number": at, "kind": "even" if at % 2 == 0 else "odd", "price": at / 2, "tags": VOCABULARY[: at % 4], "text": f"part {at}"},
            embedding=[1.0, at / 12, 0.25],
            relationships={NodeRelationship.SOURCE: RelatedNodeInfo(node_id=f"document-{at // 4}")},
        )
        made.append(node)
    return made


@pytest.fixture(params=[False, True], ids=["dense", "hybrid"])
def hybrid(request):
    return request.param


@pytest.fixture
def store(hybrid):
    name = f"llama-{uuid.uuid4().hex[:8]}"
    client, aclient = QdrantClient(url=URL, timeout=30), AsyncQdrantClient(url=URL, timeout=30)
    encoders = {"enable_hybrid": True, "sparse_doc_fn": words, "sparse_query_fn": words} if hybrid else {}
    store = QdrantVectorStore(name, client=client, aclient=aclient, replication_factor=1, shard_number=2, **encoders)
    store.add(nodes())
    yield store
    client.delete_collection(name)
    client.close()


def asked(k=3, **more):
    return VectorStoreQuery(query_embedding=[1.0, 5 / 12, 0.25], similarity_top_k=k, **more)


def numbers(result):
    return {node.metadata["number"] for node in result.nodes}


def test_nearest(store):
    found = store.query(asked(1))
    assert [node.metadata["number"] for node in found.nodes] == [5]
    assert found.nodes[0].get_content() == nodes()[5].get_content()
    assert found.nodes[0].ref_doc_id == "document-1"
    assert found.similarities[0] == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize(
    "operator, key, value, wanted",
    [
        (FilterOperator.EQ, "kind", "odd", {1, 3, 5, 7, 9, 11}),
        (FilterOperator.EQ, "price", 2.5, {5}),
        (FilterOperator.NE, "kind", "odd", {0, 2, 4, 6, 8, 10}),
        (FilterOperator.GT, "number", 9, {10, 11}),
        (FilterOperator.GTE, "number", 9, {9, 10, 11}),
        (FilterOperator.LT, "number", 2, {0, 1}),
        (FilterOperator.LTE, "number", 2, {0, 1, 2}),
        (FilterOperator.IN, "number", [1, 2, 99], {1, 2}),
        (FilterOperator.NIN, "number", [0, 1, 2, 3], set(range(4, 12))),
        (FilterOperator.TEXT_MATCH, "text", "part 7", {7}),
        (FilterOperator.IS_EMPTY, "tags", None, {0, 4, 8}),
    ],
)
def test_filters(store, operator, key, value, wanted):
    filters = MetadataFilters(filters=[MetadataFilter(key=key, value=value, operator=operator)])
    assert numbers(store.query(asked(12, filters=filters))) == wanted
    assert {node.metadata["number"] for node in store.get_nodes(filters=filters, limit=50)} == wanted


def test_combined_filters(store):
    odd = MetadataFilter(key="kind", value="odd")
    late = MetadataFilter(key="number", value=8, operator=FilterOperator.GT)
    both = MetadataFilters(filters=[odd, late], condition=FilterCondition.AND)
    either = MetadataFilters(filters=[odd, late], condition=FilterCondition.OR)
    nested = MetadataFilters(filters=[both, MetadataFilter(key="number", value=0)], condition=FilterCondition.OR)
    neither = MetadataFilters(filters=[odd, late], condition=FilterCondition.NOT)
    assert numbers(store.query(asked(12, filters=both))) == {9, 11}
    assert numbers(store.query(asked(12, filters=either))) == {1, 3, 5, 7, 9, 10, 11}
    assert numbers(store.query(asked(12, filters=nested))) == {0, 9, 11}
    assert numbers(store.query(asked(12, filters=neither))) == {0, 2, 4, 6, 8}


def test_chosen_nodes_and_documents(store):
    ids = [node.node_id for node in nodes()[:3]]
    assert numbers(store.query(asked(12, node_ids=ids))) == {0, 1, 2}
    assert numbers(store.query(asked(12, doc_ids=["document-2"]))) == {8, 9, 10, 11}
    assert len(store.get_nodes(node_ids=ids)) == 3


def test_hybrid(store, hybrid):
    if not hybrid:
        pytest.skip("no sparse vectors in it")
    only_words = VectorStoreQuery(
        query_str="fjord amber", query_embedding=[1.0, 0.0, 0.25], similarity_top_k=2, sparse_top_k=2, mode=VectorStoreQueryMode.SPARSE
    )
    assert numbers(store.query(only_words)) == {5, 11}
    fused = VectorStoreQuery(
        query_str="fjord amber", query_embedding=[1.0, 0.0, 0.25], similarity_top_k=2, sparse_top_k=12, hybrid_top_k=4, alpha=0.5,
        mode=VectorStoreQueryMode.HYBRID,
    )  # fmt: skip
    found = store.query(fused)
    assert len(found.nodes) == 4 and 5 in numbers(found)
    odd = MetadataFilters(filters=[MetadataFilter(key="kind", value="odd")])
    fused.filters = odd
    assert numbers(store.query(fused)) <= {1, 3, 5, 7, 9, 11}


def test_diverse(store):
    query = asked(3, mode=VectorStoreQueryMode.MMR)
    query.mmr_threshold = 0.5
    try:
        found = store.query(query)
    except ValueError as refused:
        pytest.skip(f"this store has no such mode: {refused}")
    assert len(numbers(found)) == 3


def test_changed(store):
    """A node that is added again replaces the one that was there."""
    node = nodes()[4]
    node.metadata["kind"] = "changed"
    store.add([node])
    changed = MetadataFilters(filters=[MetadataFilter(key="kind", value="changed")])
    assert numbers(store.query(asked(12, filters=changed))) == {4}
    assert store.client.count(store.collection_name).count == 12


def test_deleted(store):
    store.delete("document-0")
    assert store.client.count(store.collection_name).count == 8
    store.delete_nodes([nodes()[4].node_id])
    store.delete_nodes(filters=MetadataFilters(filters=[MetadataFilter(key="kind", value="odd")]))
    assert numbers(store.query(asked(12))) == {6, 8, 10}
    store.clear()
    assert not store.client.collection_exists(store.collection_name)


async def test_async(store):
    assert [node.metadata["number"] for node in (await store.aquery(asked(1))).nodes] == [5]
    more = TextNode(id_=str(uuid.UUID(int=99)), text="amber", metadata={"number": 99}, embedding=[1.0, 9.0, 0.0])
    await store.async_add([more])
    assert len(await store.aget_nodes(node_ids=[more.node_id])) == 1
    await store.adelete_nodes([more.node_id])
    await store.adelete("document-2")
    assert store.client.count(store.collection_name).count == 8
