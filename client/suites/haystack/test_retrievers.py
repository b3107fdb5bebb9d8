"""Haystack's retrievers over its Qdrant store: by vector, by sparse vector, by both; and documents changed where they lie."""
import os
import uuid

import pytest
from haystack import Document
from haystack.dataclasses import SparseEmbedding
from haystack.document_stores.types import DuplicatePolicy
from haystack_integrations.components.retrievers.qdrant import (
    QdrantEmbeddingRetriever,
    QdrantHybridRetriever,
    QdrantSparseEmbeddingRetriever,
)
from haystack_integrations.document_stores.qdrant import QdrantDocumentStore

ODD = {"field": "meta.kind", "operator": "==", "value": "odd"}


def documents():
    return [
        Document(
            id=f"document {at}",
            content=f"text {at}",
            meta={"number": at, "kind": "odd" if at % 2 else "even"},
            embedding=[1.0, at / 10, 0.0],
            sparse_embedding=SparseEmbedding(indices=[at, at + 1], values=[1.0, 0.5]),
        )
        for at in range(10)
    ]


@pytest.fixture
def store():
    index = f"haystack-{uuid.uuid4().hex[:8]}"
    store = QdrantDocumentStore(
        url=os.environ["QDRANT_URL"], timeout=30, index=index, embedding_dim=3, use_sparse_embeddings=True, sparse_idf=True,
        return_embedding=True, progress_bar=False,
        payload_fields_to_index=[{"field_name": "meta.kind", "field_schema": "keyword"}],
    )  # fmt: skip
    store.write_documents(documents())
    yield store
    store._client.delete_collection(index)
    store.close()


def numbers(found):
    return [document.meta["number"] for document in found["documents"]]


def test_by_vector(store):
    retriever = QdrantEmbeddingRetriever(store, top_k=3)
    found = retriever.run(query_embedding=[1.0, 0.4, 0.0])
    assert numbers(found)[0] == 4 and set(numbers(found)) == {3, 4, 5}
    assert found["documents"][0].score == pytest.approx(1.0, abs=1e-5)
    assert numbers(retriever.run(query_embedding=[1.0, 0.4, 0.0], filters=ODD, top_k=2)) in ([3, 5], [5, 3])
    assert numbers(retriever.run(query_embedding=[1.0, 0.4, 0.0], score_threshold=0.9999)) == [4]


def test_by_group(store):
    retriever = QdrantEmbeddingRetriever(store, group_by="meta.kind", group_size=2, top_k=2)
    assert sorted(numbers(retriever.run(query_embedding=[1.0, 0.4, 0.0])))[0] >= 2


def test_by_sparse_vector(store):
    retriever = QdrantSparseEmbeddingRetriever(store, top_k=2)
    assert numbers(retriever.run(query_sparse_embedding=SparseEmbedding(indices=[7], values=[1.0]))) == [7, 6]


@pytest.mark.parametrize("more", [{}, {"rrf_k": 10, "rrf_weights": [3.0, 1.0]}])
def test_by_both(store, more):
    retriever = QdrantHybridRetriever(store, top_k=4, **more)
    found = retriever.run(query_embedding=[1.0, 0.0, 0.0], query_sparse_embedding=SparseEmbedding(indices=[7], values=[1.0]))
    assert {0, 7} <= set(numbers(found))
    found = retriever.run(
        query_embedding=[1.0, 0.0, 0.0], query_sparse_embedding=SparseEmbedding(indices=[7], values=[1.0]), filters=ODD
    )
    assert {1, 7} <= set(numbers(found)) and all(number % 2 for number in numbers(found))


async def test_async(store):
    found = await QdrantEmbeddingRetriever(store, top_k=1).run_async(query_embedding=[1.0, 0.4, 0.0])
    assert numbers(found) == [4]


def test_changed(store):
    changed = documents()[4]
    changed.content = "another text"
    assert store.write_documents([changed], policy=DuplicatePolicy.OVERWRITE) == 1
    assert store.write_documents([changed], policy=DuplicatePolicy.SKIP) == 0
    assert store.get_documents_by_id(["document 4"])[0].content == "another text"
    assert store.update_by_filter(ODD, {"seen": True}) == 5
    assert store.count_documents_by_filter({"field": "meta.seen", "operator": "==", "value": True}) == 5
    assert store.delete_by_filter(ODD) == 5
    store.delete_documents(["document 0", "nobody"])
    assert store.count_documents() == 4
