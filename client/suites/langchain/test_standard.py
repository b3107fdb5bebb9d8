"""LangChain's own integration tests for vector stores, over `QdrantVectorStore`.

They run twice. **As it ships**, the store cannot pass those that compare documents, whatever the server: it adds to their
metadata, does not set their id, and refuses to be given no id. Each of these is expected to fail, strictly, with the line that is the
cause; all others pass. **As LangChain means it**, a store that differs in those lines only passes what they kept from being seen.
"""
import os
import uuid

import pytest
from langchain_core.documents import Document
from langchain_qdrant import QdrantVectorStore
from langchain_tests.integration_tests.vectorstores import EMBEDDING_SIZE, VectorStoreIntegrationTests
from qdrant_client import QdrantClient, models

ADDED = (
    "langchain_qdrant/qdrant.py:1031-1036, _document_from_point: adds `_id` and `_collection_name` to the metadata and leaves "
    "the document's id unset"
)
NO_ID = "langchain_qdrant/qdrant.py:1053, _generate_batches: builds PointStruct(id=None) where one of several documents has no id"

COMPARES_DOCUMENTS = [
    "test_add_documents",
    "test_deleting_documents",
    "test_deleting_bulk_documents",
    "test_add_documents_with_ids_is_idempotent",
    "test_add_documents_by_id_with_mutation",
    "test_get_by_ids",
    "test_add_documents_documents",
]
GIVES_NO_ID = ["test_add_documents_with_existing_ids"]


@pytest.fixture
def collection():
    """A client, and the name of an empty collection."""
    with_timeout = QdrantClient(url=os.environ["QDRANT_URL"], timeout=30)
    name = f"langchain-{uuid.uuid4().hex[:8]}"
    vectors = models.VectorParams(size=EMBEDDING_SIZE, distance=models.Distance.COSINE)
    with_timeout.create_collection(name, vectors_config=vectors)
    yield with_timeout, name
    with_timeout.delete_collection(name)
    with_timeout.close()


def expect_failures(tests, names, reason):
    """Marks the tests, sync and async, as failing for that reason; strictly: one that passes is a failure."""
    for name in [*names, *(f"{name}_async" for name in names)]:
        inherited = getattr(tests, name)

        def test(self, vectorstore, inherited=inherited):
            return inherited(self, vectorstore)

        async def test_async(self, vectorstore, inherited=inherited):
            await inherited(self, vectorstore)

        mark = pytest.mark.xfail(strict=True, reason=reason)
        setattr(tests, name, mark(test_async if name.endswith("_async") else test))


class TestAsItShips(VectorStoreIntegrationTests):
    @pytest.fixture
    def vectorstore(self, collection):
        client, name = collection
        return QdrantVectorStore(client=client, collection_name=name, embedding=self.get_embeddings())


expect_failures(TestAsItShips, COMPARES_DOCUMENTS, ADDED)
expect_failures(TestAsItShips, GIVES_NO_ID, NO_ID)


class Meant(QdrantVectorStore):
    """Documents as LangChain means them: the id is the document's, the metadata is what was given."""

    @classmethod
    def _document_from_point(cls, scored_point, collection_name, content_payload_key, metadata_payload_key):
        given = QdrantVectorStore._document_from_point(
            scored_point, collection_name, content_payload_key, metadata_payload_key
        )
        metadata = {key: value for key, value in given.metadata.items() if key not in ("_id", "_collection_name")}
        return Document(id=spelled(scored_point.id), page_content=given.page_content, metadata=metadata)


def spelled(point_id):
    """UUIDs as the store makes them: Qdrant answers them with hyphens, the store sends them without."""
    try:
        return uuid.UUID(point_id).hex
    except ValueError:
        return point_id


class TestAsLangChainMeansIt(VectorStoreIntegrationTests):
    @pytest.fixture
    def vectorstore(self, collection):
        client, name = collection
        return Meant(client=client, collection_name=name, embedding=self.get_embeddings())


expect_failures(TestAsLangChainMeansIt, GIVES_NO_ID, NO_ID)
