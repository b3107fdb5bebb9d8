"""The asynchronous client: create, write, search, page, delete, many at once."""
import asyncio
import uuid

import pytest
from qdrant_client import AsyncQdrantClient, models


@pytest.fixture
async def client(transport):
    client = AsyncQdrantClient(**transport)
    yield client
    await client.close()


@pytest.fixture
async def name(client):
    name = f"suite-{uuid.uuid4().hex[:8]}"
    await client.create_collection(name, vectors_config=models.VectorParams(size=3, distance=models.Distance.COSINE))
    yield name
    await client.delete_collection(name)


async def test_all_of_it(client, name):
    kinds = ["fruit", "tool", "sea"]
    points = [models.PointStruct(id=at, vector=[1.0, at / 60, 0.5], payload={"kind": kinds[at % 3], "at": at}) for at in range(60)]
    await asyncio.gather(*(client.upsert(name, points[at : at + 10]) for at in range(0, 60, 10)))
    assert (await client.count(name)).count == 60
    fruit = models.Filter(must=[models.FieldCondition(key="kind", match=models.MatchValue(value="fruit"))])
    found = await asyncio.gather(*(client.query_points(name, query=[1.0, at / 60, 0.5], query_filter=fruit, limit=1) for at in range(0, 60, 3)))
    assert [answer.points[0].id for answer in found] == list(range(0, 60, 3))
    page, offset = await client.scroll(name, limit=25, with_vectors=True)
    assert [record.id for record in page] == list(range(25)) and offset == 25
    await client.set_payload(name, payload={"kind": "sea"}, points=fruit)
    assert (await client.count(name, count_filter=fruit)).count == 0
    await client.delete(name, points_selector=[1, 2, 3])
    assert [record.id for record in await client.retrieve(name, [1, 2, 3, 4])] == [4]
    info = await client.get_collection(name)
    assert info.points_count == 57


async def test_errors(client, name):
    with pytest.raises(Exception, match="Not found: Collection"):
        await client.query_points("nobody", query=[1.0, 2.0, 3.0])
    with pytest.raises(Exception, match="Vector dimension error: expected dim: 3, got 1"):
        await client.query_points(name, query=[1.0])
