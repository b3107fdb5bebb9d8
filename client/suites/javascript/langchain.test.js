// @langchain/qdrant: texts added, found with and without a filter, ranked for diversity, deleted.
import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { after, test } from "node:test";
import { Document } from "@langchain/core/documents";
import { Embeddings } from "@langchain/core/embeddings";
import { QdrantVectorStore } from "@langchain/qdrant";

const words = ["amber", "birch", "cedar", "dune", "ember", "fjord"];

/** A vector of a text: which of the words it has. */
class Words extends Embeddings {
  constructor() {
    super({});
  }
  async embedQuery(text) {
    return words.map((word) => (text.includes(word) ? 1 : 0.01));
  }
  async embedDocuments(texts) {
    return Promise.all(texts.map((text) => this.embedQuery(text)));
  }
}

const collectionName = `javascript-${randomUUID().slice(0, 8)}`;
const config = { url: process.env.QDRANT_URL, collectionName, collectionConfig: { vectors: { size: 6, distance: "Cosine" }, on_disk_payload: true } };
const texts = ["amber birch", "cedar dune", "ember fjord", "amber fjord"];
const store = await QdrantVectorStore.fromTexts(texts, texts.map((_, at) => ({ at, odd: at % 2 === 1 })), new Words(), config);

after(() => store.client.deleteCollection(collectionName));

test("the nearest text is found", async () => {
  const [[document, score]] = await store.similaritySearchWithScore("cedar and dune", 1);
  assert.equal(document.pageContent, "cedar dune");
  assert.equal(document.metadata.at, 1);
  assert.ok(score > 0.99);
});

test("filters", async () => {
  const found = await store.similaritySearch("amber", 4, { must: [{ key: "metadata.odd", match: { value: true } }] });
  assert.deepEqual(found.map((document) => document.metadata.at).sort(), [1, 3]);
});

test("diverse hits", async () => {
  const found = await store.maxMarginalRelevanceSearch("amber", { k: 2, fetchK: 4, lambda: 0.5 });
  assert.equal(new Set(found.map((document) => document.pageContent)).size, 2);
});

test("an existing collection", async () => {
  const again = await QdrantVectorStore.fromExistingCollection(new Words(), config);
  assert.equal((await again.similaritySearch("ember fjord", 1))[0].metadata.at, 2);
});

test("documents are added and deleted by id and by filter", async () => {
  const id = randomUUID();
  await store.addDocuments([new Document({ pageContent: "birch cedar", metadata: { at: 9 } })], { ids: [id] });
  assert.equal((await store.similaritySearch("birch cedar", 1))[0].metadata.at, 9);
  await store.delete({ ids: [id] });
  assert.notEqual((await store.similaritySearch("birch cedar", 1))[0].metadata.at, 9);
  await store.delete({ filter: { must: [{ key: "metadata.odd", match: { value: true } }] } });
  assert.equal((await store.similaritySearch("amber", 9)).length, 2);
});

test("as a retriever", async () => {
  const found = await store.asRetriever({ k: 1 }).invoke("ember fjord");
  assert.equal(found[0].pageContent, "ember fjord");
});
