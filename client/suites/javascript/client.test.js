// @qdrant/js-client-rest: create, upsert, search, filter, page, change, delete, aliases, errors.
import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { after, before, test } from "node:test";
import { QdrantClient } from "@qdrant/js-client-rest";

const client = new QdrantClient({ url: process.env.QDRANT_URL });
const name = `javascript-${randomUUID().slice(0, 8)}`;
const kinds = ["fruit", "tool", "sea"];

const vector = (at) => [1, at / 30, 0.25];
const ids = (points) => points.map((point) => point.id);
const kind = (value) => ({ must: [{ key: "kind", match: { value } }] });

before(async () => {
  assert.equal((await client.collectionExists(name)).exists, false);
  await client.createCollection(name, {
    vectors: { dense: { size: 3, distance: "Cosine", on_disk: true } },
    sparse_vectors: { words: { modifier: "idf" } },
    hnsw_config: { m: 8 },
    optimizers_config: { default_segment_number: 2 },
    quantization_config: { scalar: { type: "int8" } },
    replication_factor: 1,
  });
  const points = Array.from({ length: 30 }, (_, at) => ({
    id: at % 2 ? at : `00000000-0000-4000-8000-${String(at).padStart(12, "0")}`,
    vector: { dense: vector(at), words: { indices: [at % 5, 9], values: [1, 0.5] } },
    payload: { at, kind: kinds[at % 3], nested: { deep: [at, at + 1] } },
  }));
  const answer = await client.upsert(name, { wait: true, ordering: "strong", points });
  assert.equal(answer.status, "completed");
});

after(() => client.deleteCollection(name));

test("a collection is described", async () => {
  const { collections } = await client.getCollections();
  assert.ok(collections.some((collection) => collection.name === name));
  const info = await client.getCollection(name);
  assert.equal(info.points_count, 30);
  assert.equal(info.config.params.vectors.dense.size, 3);
  assert.equal(info.config.hnsw_config.m, 8);
  await client.updateCollection(name, { optimizers_config: { indexing_threshold: 777 } });
  assert.equal((await client.getCollection(name)).config.optimizer_config.indexing_threshold, 777);
  await assert.rejects(client.getCollection("nobody"), { status: 404 });
  await assert.rejects(client.createCollection(name, { vectors: { size: 3, distance: "Dot" } }), { status: 409 });
});

test("the nearest come first", async () => {
  const { points } = await client.query(name, { query: vector(7), using: "dense", limit: 3, with_payload: true });
  assert.equal(points[0].payload.at, 7);
  assert.ok(Math.abs(points[0].score - 1) < 1e-5);
});

test("filters", async () => {
  const fruit = await client.query(name, { query: vector(7), using: "dense", filter: kind("fruit"), limit: 30, with_payload: true });
  assert.equal(fruit.points.length, 10);
  assert.ok(fruit.points.every((point) => point.payload.at % 3 === 0));
  const { count } = await client.count(name, { filter: { must: [{ key: "at", range: { gte: 10, lt: 20 } }], must_not: kind("sea").must }, exact: true });
  assert.equal(count, 7);
  assert.equal((await client.count(name, { filter: { should: [{ has_id: [1, 3] }, { key: "nested.deep[]", match: { value: 30 } }] } })).count, 3);
});

test("a sparse and a dense search are fused", async () => {
  const { points } = await client.query(name, {
    prefetch: [
      { query: vector(3), using: "dense", limit: 10 },
      { query: { indices: [3], values: [1] }, using: "words", limit: 10 },
    ],
    query: { fusion: "rrf" },
    filter: { must: [{ key: "at", range: { lt: 9 } }] },
    limit: 5,
    with_payload: true,
  });
  assert.equal(points[0].payload.at, 3);
  assert.ok(points.every((point) => point.payload.at < 9));
});

test("batches and groups", async () => {
  const answers = await client.queryBatch(name, { searches: [{ query: vector(1), using: "dense", limit: 1 }, { query: 3, using: "dense", limit: 2 }] });
  assert.deepEqual(answers.map((answer) => answer.points.length), [1, 2]);
  const { groups } = await client.queryGroups(name, { query: vector(0), using: "dense", group_by: "kind", limit: 3, group_size: 2 });
  assert.deepEqual(groups.map((group) => group.id).sort(), ["fruit", "sea", "tool"]);
  assert.ok(groups.every((group) => group.hits.length === 2));
});

test("pages hold every point once", async () => {
  const seen = [];
  let offset;
  do {
    const page = await client.scroll(name, { limit: 7, offset, with_payload: false, with_vector: true });
    seen.push(...ids(page.points));
    assert.ok(page.points.every((point) => point.vector.dense.length === 3));
    offset = page.next_page_offset;
  } while (offset !== null && offset !== undefined);
  assert.equal(new Set(seen).size, 30);
});

test("payloads and vectors change", async () => {
  await client.createPayloadIndex(name, { field_name: "kind", field_schema: "keyword", wait: true });
  await client.setPayload(name, { payload: { kind: "new", more: { a: 1 } }, points: [1, 3], wait: true });
  await client.deletePayload(name, { keys: ["nested"], points: [3], wait: true });
  await client.overwritePayload(name, { payload: { only: true }, points: [5], wait: true });
  await client.clearPayload(name, { points: [7], wait: true });
  await client.updateVectors(name, { points: [{ id: 9, vector: { dense: [0, 0, 1] } }], wait: true });
  await client.deleteVectors(name, { points: [11], vector: ["words"], wait: true });
  const told = await client.retrieve(name, { ids: [1, 3, 5, 7, 9, 11], with_payload: true, with_vector: true });
  const by = new Map(told.map((point) => [point.id, point]));
  assert.deepEqual(by.get(1).payload, { at: 1, kind: "new", more: { a: 1 }, nested: { deep: [1, 2] } });
  assert.deepEqual(by.get(3).payload, { at: 3, kind: "new", more: { a: 1 } });
  assert.deepEqual(by.get(5).payload, { only: true });
  assert.deepEqual(by.get(7).payload ?? {}, {});
  assert.deepEqual(by.get(9).vector.dense, [0, 0, 1]);
  assert.deepEqual(Object.keys(by.get(11).vector), ["dense"]);
  await client.batchUpdate(name, { operations: [{ set_payload: { payload: { last: 1 }, points: [1] } }, { delete: { points: [29] } }], wait: true });
  assert.equal((await client.retrieve(name, { ids: [29] })).length, 0);
  const facet = await client.facet(name, { key: "kind", exact: true });
  assert.equal(facet.hits.find((hit) => hit.value === "new").count, 2);
});

test("points are deleted by id and by filter", async () => {
  await client.delete(name, { points: [13, 15], wait: true });
  await client.delete(name, { filter: kind("tool"), wait: true });
  assert.equal((await client.count(name, { filter: kind("tool"), exact: true })).count, 0);
  assert.equal((await client.retrieve(name, { ids: [13, 15] })).length, 0);
});

test("aliases", async () => {
  const alias = `${name}-alias`;
  await client.updateCollectionAliases({ actions: [{ create_alias: { collection_name: name, alias_name: alias } }] });
  assert.equal((await client.count(alias)).count, (await client.count(name)).count);
  assert.deepEqual((await client.getCollectionAliases(name)).aliases, [{ alias_name: alias, collection_name: name }]);
  await client.updateCollectionAliases({ actions: [{ delete_alias: { alias_name: alias } }] });
  assert.equal((await client.getAliases()).aliases.filter((told) => told.alias_name === alias).length, 0);
});

test("errors say what is wrong", async () => {
  await assert.rejects(client.query(name, { query: [1, 2], using: "dense" }), (error) => {
    assert.equal(error.status, 400);
    assert.match(JSON.stringify(error.data), /2 components/);
    return true;
  });
  await assert.rejects(client.upsert(name, { points: [{ id: 1, vector: { nobody: [1] } }] }), { status: 400 });
});
