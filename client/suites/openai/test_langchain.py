"""LangChain's OpenAI classes, unmodified, and points that its Qdrant store wrote."""

import pytest
from langchain_core.messages import HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from test_openai import MODEL, QUESTION, embed

TEXTS = [
    "Ants live in large colonies. The queen ant lays all the eggs of the colony.",
    "Ships are steered with a rudder. A sail catches the wind and drives the ship forward.",
]


@pytest.fixture(scope="module")
def embeddings(url):
    # As it comes: it cuts texts into tokens itself, and sends these.
    return OpenAIEmbeddings(base_url=url, api_key="sk-any", model="static256")


def chat(url, **more):
    return ChatOpenAI(base_url=url, api_key="sk-any", model=MODEL, **more)


def test_invoke(url):
    answer = chat(url, temperature=0).invoke([SystemMessage("Be brief."), HumanMessage(QUESTION)])
    assert "[1]" in answer.content and answer.response_metadata["finish_reason"] == "stop"
    assert answer.usage_metadata["total_tokens"] > 0


def test_stream(url):
    pieces = list(chat(url).stream(QUESTION))
    assert "".join(piece.content for piece in pieces) == chat(url).invoke(QUESTION).content
    assert len(pieces) > 1


def test_batch(url):
    answers = chat(url).batch([QUESTION, QUESTION])
    assert answers[0].content == answers[1].content != ""


def test_embeddings(client, embeddings):
    assert embeddings.embed_documents(TEXTS) == [pytest.approx(vector, abs=1e-6) for vector in embed(client, TEXTS)]
    assert embeddings.embed_query(TEXTS[0]) == pytest.approx(embed(client, TEXTS[0])[0], abs=1e-6)


def test_embeddings_of_a_text_that_is_cut(client, url):
    small = OpenAIEmbeddings(base_url=url, api_key="sk-any", model="static256", embedding_ctx_length=8)
    long = " ".join(TEXTS)
    vector = small.embed_query(long)
    whole = embed(client, long)[0]
    assert sum(a * b for a, b in zip(vector, whole)) > 0.9


def test_points_of_the_qdrant_store_are_answered_from(http, url, embeddings):
    from langchain_qdrant import QdrantVectorStore

    metadatas = [{"source": "ants.md"}, {"source": "ships.md"}]
    store = QdrantVectorStore.from_texts(TEXTS, embeddings, metadatas=metadatas, url=http, collection_name="langchain")
    assert store.similarity_search("Which ant lays the eggs?", k=1)[0].page_content == TEXTS[0]
    answer = chat(url).bind(model="nearring/langchain").invoke("Which ant lays the eggs?")
    assert "The queen ant lays all the eggs of the colony. [1]" in answer.content
