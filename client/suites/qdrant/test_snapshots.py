"""Snapshots through the client: made and listed over either transport, fetched and restored over REST, compared with local mode."""
import hashlib
import uuid

import httpx
import pytest
from qdrant_client import models

from both import same_records


@pytest.fixture
def into(server):
    name = f"suite-{uuid.uuid4().hex[:8]}"
    yield name
    server.delete_collection(name)


def made(server, both, url):
    described = server.create_snapshot(both.collection, wait=True)
    assert described.name.startswith(f"{both.collection}-") and described.name.endswith(".snapshot")
    assert described.size > 0 and described.creation_time
    # What the client makes of the gRPC answer leaves the checksum out.
    listed = httpx.get(f"{url}/collections/{both.collection}/snapshots", timeout=60).json()["result"]
    checksum = next(one["checksum"] for one in listed if one["name"] == described.name)
    assert described.checksum in (None, checksum) and len(checksum) == 64
    described.checksum = checksum
    return described


def test_made_listed_deleted(server, own, url):
    assert server.list_snapshots(own.collection) == []
    first, second = made(server, own, url), made(server, own, url)
    listed = server.list_snapshots(own.collection)
    assert {one.name for one in listed} == {first.name, second.name}
    assert server.delete_snapshot(own.collection, first.name, wait=True)
    assert [one.name for one in server.list_snapshots(own.collection)] == [second.name]
    with pytest.raises(Exception, match="not found"):
        server.delete_snapshot(own.collection, first.name, wait=True)
    with pytest.raises(Exception, match="(?i)not found|does not exist"):
        server.create_snapshot("nobody", wait=True)
    server.delete_snapshot(own.collection, second.name, wait=True)


def test_restored_is_what_was_there(server, own, into, url):
    server.create_payload_index(own.collection, "group", models.PayloadSchemaType.KEYWORD, wait=True)
    described = made(server, own, url)
    address = f"{url}/collections/{own.collection}/snapshots/{described.name}"
    file = httpx.get(address, timeout=60)
    assert file.headers["content-length"] == str(described.size) == str(len(file.content))
    assert hashlib.sha256(file.content).hexdigest() == described.checksum
    # Changed since: what is restored is what was there.
    before, _ = own.local.scroll(own.collection, limit=1000, with_vectors=True)
    server.delete(own.collection, models.Filter(must=[models.FieldCondition(key="flag", match=models.MatchValue(value=True))]))
    assert server.recover_snapshot(into, location=address, checksum=described.checksum, wait=True)
    restored, _ = server.scroll(into, limit=1000, with_vectors=True)
    same_records(restored, before, "restored")
    was, now = server.get_collection(own.collection), server.get_collection(into)
    assert now.config == was.config and now.payload_schema.keys() == was.payload_schema.keys()
    with pytest.raises(Exception, match="points"):
        server.recover_snapshot(own.collection, location=address, wait=True)

    server.delete_collection(into)
    upload = f"{url}/collections/{into}/snapshots/upload?priority=snapshot&checksum={described.checksum}"
    answer = httpx.post(upload, files={"snapshot": ("a.snapshot", file.content)}, timeout=60)
    assert answer.status_code == 200 and answer.json()["result"] is True, answer.text
    restored, _ = server.scroll(into, limit=1000, with_vectors=True)
    same_records(restored, before, "uploaded")
    server.delete_snapshot(own.collection, described.name, wait=True)


def test_whole_storage_and_single_shards_are_refused_by_name(server, own):
    with pytest.raises(Exception, match="snapshots of the whole storage"):
        server.create_full_snapshot(wait=True)
    with pytest.raises(Exception, match="snapshots of the whole storage"):
        server.list_full_snapshots()
    with pytest.raises(Exception, match="snapshots of single shards"):
        server.list_shard_snapshots(own.collection, shard_id=0)
