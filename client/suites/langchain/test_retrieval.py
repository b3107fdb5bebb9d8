"""Dense, sparse and hybrid retrieval, filters, diversity and scores through LangChain's store."""
import hashlib
import os
import uuid

import pytest
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_qdrant import QdrantVectorStore, RetrievalMode
from langchain_qdrant.sparse_embeddings import SparseEmbeddings, SparseVector
from qdrant_client import QdrantClient, models

SIZE = 64
TEXTS = [
    "red apples ripen in the orchard",
    "the orchard grows green pears",
    "trains leave the station at noon",
    "the station sells red tickets",
    "a submarine dives below the ice",
]


def bucket(word, size):
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=4).digest(), "big") % size


class Words(Embeddings):
    """A bag of hashed words: texts that share words are near."""

    def embed_query(self, text):
        vector = [0.0] * SIZE
        for word in text.split():
            vector[bucket(word, SIZE)] += 1.0
        return vector

    def embed_documents(self, texts):
        return [self.embed_query(text) for text in texts]


class SparseWords(SparseEmbeddings):
    """The same over 30 bits, so that no two of these words share an index."""

    def embed_query(self, text):
        words = sorted({bucket(word, 1 << 30) for word in text.split()})
        return SparseVector(indices=words, values=[1.0] * len(words))

    def embed_documents(self, texts):
        return [self.embed_query(text) for text in texts]


@pytest.fixture(params=list(RetrievalMode), ids=lambda mode: mode.value)
def mode(request):
    return request.param


@pytest.fixture
def store(mode):
    name = f"langchain-{uuid.uuid4().hex[:8]}"
    store = QdrantVectorStore.from_texts(
        TEXTS,
        Words(),
        metadatas=[{"place": at, "kind": "fruit" if at < 2 else "other"} for at in range(len(TEXTS))],
        ids=[f"text {at}" for at in range(len(TEXTS))],
        sparse_embedding=SparseWords(),
        retrieval_mode=mode,
        collection_name=name,
        url=os.environ["QDRANT_URL"],
        timeout=30,
        # Existing code sends such settings; they must not be an error.
        collection_create_options={
            "on_disk_payload": True,
            "hnsw_config": models.HnswConfigDiff(m=8),
            "quantization_config": models.ScalarQuantization(scalar=models.ScalarQuantizationConfig(type="int8")),
        },
    )
    yield store
    store.client.delete_collection(name)


def fruit():
    return models.Filter(must=[models.FieldCondition(key="metadata.kind", match=models.MatchValue(value="fruit"))])


def test_nearest_first(store):
    found = store.similarity_search("trains leave the station", k=2)
    assert [document.metadata["place"] for document in found] == [2, 3]


def test_filter(store):
    found = store.similarity_search("the station sells red tickets", k=5, filter=fruit())
    assert {document.metadata["place"] for document in found} == {0, 1}


def test_scores_are_those_of_local_mode(store, mode):
    local = QdrantVectorStore.from_texts(
        TEXTS,
        Words(),
        ids=[str(uuid.uuid4()) for _ in TEXTS],
        sparse_embedding=SparseWords(),
        retrieval_mode=mode,
        location=":memory:",
        collection_name="local",
    )
    for question in ("red", "red tickets", "the orchard"):
        ours, theirs = (one.similarity_search_with_score(question, k=len(TEXTS)) for one in (store, local))
        by_text = {document.page_content: score for document, score in theirs if score > 0}
        assert by_text, question
        found = {document.page_content: score for document, score in ours if score > 0}
        if mode == RetrievalMode.HYBRID:
            # Equal scores below the fusion may be ranked either way, and the fused scores follow.
            assert set(found) == set(by_text), question
        else:
            assert found == pytest.approx(by_text, abs=1e-4)


async def test_retriever(store):
    retriever = store.as_retriever(search_kwargs={"k": 1})
    assert [document.page_content for document in await retriever.ainvoke("submarine ice")] == [TEXTS[4]]


def test_added_and_deleted(store):
    store.add_documents([Document(page_content="a lighthouse blinks", metadata={"place": 9})], ids=["light"])
    assert store.similarity_search("lighthouse blinks", k=1)[0].metadata["place"] == 9
    assert store.delete(["light", "text 4"])
    assert [document.metadata["_id"] for document in store.get_by_ids(["light", "text 4", "text 0"])] == ["text 0"]


def test_existing_collection(store, mode):
    again = QdrantVectorStore.from_existing_collection(
        collection_name=store.collection_name,
        embedding=Words(),
        sparse_embedding=SparseWords(),
        retrieval_mode=mode,
        url=os.environ["QDRANT_URL"],
    )
    assert again.similarity_search("green pears", k=1)[0].page_content == TEXTS[1]


def test_diverse(store, mode):
    if mode == RetrievalMode.SPARSE:
        pytest.skip("the store needs dense vectors for it")
    found = store.max_marginal_relevance_search("the red orchard", k=3, fetch_k=5, lambda_mult=0.3)
    assert len({document.page_content for document in found}) == 3


def test_dimension_is_checked(store, mode):
    class Narrow(Words):
        def embed_query(self, text):
            return [1.0, 2.0]

    if mode == RetrievalMode.SPARSE:
        pytest.skip("no dense vectors in it")
    with pytest.raises(Exception, match="dimension"):
        QdrantVectorStore(
            client=QdrantClient(url=os.environ["QDRANT_URL"]),
            collection_name=store.collection_name,
            embedding=Narrow(),
            sparse_embedding=SparseWords(),
            retrieval_mode=mode,
        )
