"""Haystack's own tests for document stores, over its Qdrant store.

A test that cannot pass is expected to fail, strictly, with the line of the store that is the cause: each of these fails in the
same way over the client's local mode (`HAYSTACK_LOCAL=1` runs all of them there).
"""
import os
import uuid

import pytest
from haystack import Document
from haystack.document_stores.errors import DuplicateDocumentError
from haystack.testing import document_store as sync_tests
from haystack.testing import document_store_async as async_tests
from haystack_integrations.document_stores.qdrant import QdrantDocumentStore

LOCAL = bool(os.environ.get("HAYSTACK_LOCAL"))


@pytest.fixture
def document_store():
    index = f"haystack-{uuid.uuid4().hex[:8]}"
    where = {"location": ":memory:"} if LOCAL else {"url": os.environ["QDRANT_URL"], "timeout": 30}
    store = QdrantDocumentStore(
        **where,
        index=index,
        return_embedding=True,
        wait_result_from_api=True,
        progress_bar=False,
        # Existing code sends such settings; they must not be an error.
        on_disk_payload=True,
        hnsw_config={"m": 8},
        optimizers_config={"indexing_threshold": 5000},
    )
    yield store
    store._initialize_client()
    store._client.delete_collection(index)
    store.close()


class SameDocuments:
    @staticmethod
    def assert_documents_are_equal(received, expected):
        """Qdrant gives documents in the order of their ids, and its store gives them a score: neither is part of the contract."""
        received = sorted(received, key=lambda document: document.id)
        expected = sorted(expected, key=lambda document: document.id)
        assert [document.id for document in received] == [document.id for document in expected]
        for one, other in zip(received, expected):
            assert (one.content, one.meta, one.blob) == (other.content, other.meta, other.blob)
            assert (one.embedding is None) == (other.embedding is None)


NO_NONE = (
    "haystack_integrations/document_stores/qdrant/filters.py:93-95, _process_comparison_operator: takes the value None for a "
    "missing one"
)
NOT = (
    "haystack_integrations/document_stores/qdrant/filters.py:80-82, _process_logical_operator: NOT becomes `must_not`, which is that "
    "none of the conditions holds; Haystack means that not all do"
)
OPERATOR = (
    "haystack_integrations/document_stores/qdrant/document_store.py:2554, _validate_filters: raises ValueError where Haystack wants FilterError"
)
COMPARISONS = ["equal", "not_equal", "greater_than", "greater_than_equal", "less_than", "less_than_equal"]


def expect_failures(tests, names, reason):
    """Marks tests as failing for that reason; strictly: one that passes is a failure."""
    for name in names:
        inherited = getattr(tests, name)

        def test(self, document_store, filterable_docs, inherited=inherited):
            return inherited(self, document_store, filterable_docs)

        setattr(tests, name, pytest.mark.xfail(strict=True, reason=reason)(test))


class TestDocumentStore(
    SameDocuments,
    sync_tests.DocumentStoreBaseExtendedTests,
    sync_tests.CountDocumentsByFilterTest,
    sync_tests.CountUniqueMetadataByFilterTest,
    sync_tests.GetMetadataFieldsInfoTest,
    sync_tests.GetMetadataFieldMinMaxTest,
    sync_tests.GetMetadataFieldUniqueValuesTest,
):
    @pytest.fixture
    def document_store(self, document_store):
        return document_store

    def test_write_documents(self, document_store):
        """Haystack wants this one from each store: what happens where no policy is given. Here a duplicate is an error."""
        document = Document(content="once")
        assert document_store.write_documents([document]) == 1
        with pytest.raises(DuplicateDocumentError):
            document_store.write_documents([document])


expect_failures(TestDocumentStore, [f"test_comparison_{name}_with_none" for name in COMPARISONS], NO_NONE)
expect_failures(TestDocumentStore, ["test_not_operator"], NOT)
expect_failures(TestDocumentStore, ["test_missing_top_level_operator_key"], OPERATOR)


class TestDocumentStoreAsync(
    SameDocuments,
    async_tests.DeleteAllAsyncTest,
    async_tests.CountDocumentsAsyncTest,
    async_tests.CountDocumentsByFilterAsyncTest,
    async_tests.CountUniqueMetadataByFilterAsyncTest,
    async_tests.DeleteByFilterAsyncTest,
    async_tests.UpdateByFilterAsyncTest,
    async_tests.WriteDocumentsAsyncTest,
    async_tests.DeleteDocumentsAsyncTest,
    async_tests.GetMetadataFieldsInfoAsyncTest,
    async_tests.GetMetadataFieldMinMaxAsyncTest,
    async_tests.GetMetadataFieldUniqueValuesAsyncTest,
    async_tests.FilterDocumentsAsyncTest,
):
    @pytest.fixture
    def document_store(self, document_store):
        return document_store

    async def test_write_documents_async(self, document_store):
        document = Document(content="once")
        assert await document_store.write_documents_async([document]) == 1
        with pytest.raises(DuplicateDocumentError):
            await document_store.write_documents_async([document])
