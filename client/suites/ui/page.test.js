// The page as somebody uses it: every test goes on from the state of the cluster that the one before left.
import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { mkdirSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { after, before, test } from "node:test";
import { promisify } from "node:util";

import { chromium } from "playwright-core";

const url = process.env.QDRANT_URL;
const pids = process.env.NODE_PIDS.split(",").map(Number);
const axe = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
const HOSTILE = [
  '<script>window.struck = "script"</script>',
  '<img src="x" onerror="window.struck = \'img\'">',
  '"><svg onload="window.struck = \'svg\'">',
];
/** Beyond what a double holds. */
const LARGE = "18446744073709551615";

let browser;
let page;
/** What the browser complained of, and where it went. */
const complaints = [];
const hosts = new Set();

async function call(method, path, body) {
  const text = typeof body === "string" ? body : JSON.stringify(body);
  const response = await fetch(url + path, { method, headers: { "content-type": "application/json" }, body: text });
  assert.ok(response.ok, `${method} ${path}: ${await response.clone().text()}`);
  return response.json();
}

/** A page that keeps what goes wrong. Answers that are errors are told by the browser, too: tests that want one say so. */
async function open(options = {}) {
  const context = await browser.newContext({ viewport: { width: 1280, height: 900 }, ...options });
  const opened = await context.newPage();
  opened.on("console", (message) => {
    if (["error", "warning"].includes(message.type())) complaints.push(message.text());
  });
  opened.on("pageerror", (error) => complaints.push(String(error)));
  opened.on("request", (request) => hosts.add(new URL(request.url()).host));
  return opened;
}

before(async () => {
  const vectors = { vectors: { size: 4, distance: "Cosine" }, shard_number: 2 };
  await call("PUT", "/collections/hostile", vectors);
  await call("PUT", "/collections/hostile/index", { field_name: "kind", field_schema: "keyword" });
  const points = HOSTILE.map((text, at) => ({ id: at + 1, vector: [1, at, 0, 1], payload: { text, title: text, kind: text, [text]: 1 } }));
  points.push({ id: HOSTILE[0], vector: [0, 1, 1, 0], payload: { text: "its id is hostile", big: 0 } });
  let body = JSON.stringify({ points });
  body = body.replace('"big":0', `"big":${LARGE}`);
  await call("PUT", "/collections/hostile/points?wait=true", body);
  const large = `{"points": [{"id": ${LARGE}, "vector": [0, 1, 0.9, 0], "payload": {"text": "large"}}]}`;
  await call("PUT", "/collections/hostile/points?wait=true", large);
  const importing = ["import", process.env.SAMPLE, "--collection", "sample", "--create"];
  await promisify(execFile)(process.env.NEARRING, importing, { env: { ...process.env } });
  const executablePath = process.env.CHROMIUM ?? "/usr/bin/chromium";
  // Chromium refuses its sandbox to root, as whom containers run tests.
  browser = await chromium.launch({ executablePath, args: process.getuid() === 0 ? ["--no-sandbox"] : [] });
  page = await open();
});

after(async () => {
  await browser?.close();
});

/** Goes to a part of the page, as a link would. */
async function visit(hash, on = page) {
  // From elsewhere, so that the same part is shown anew.
  await on.goto("about:blank");
  await on.goto(`${url}/ui/#${hash}`);
}

const SHOTS = [["light", {}], ["dark", { colorScheme: "dark" }], ["phone", { viewport: { width: 390, height: 844 }, isMobile: true }]];

/** What the accessibility rules of WCAG 2 A and AA say, in every scheme and width; and a picture of each, where asked for. */
async function look(name, hash, ready) {
  for (const [scheme, options] of SHOTS) {
    const shown = await open(options);
    await visit(hash, shown);
    await ready(shown);
    await shown.evaluate(axe);
    const found = await shown.evaluate(() => globalThis.axe.run({ runOnly: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"] }));
    const violations = found.violations.map((one) => `${one.id}: ${one.nodes.map((node) => node.html).slice(0, 3).join(" ")}`);
    assert.deepEqual(violations, [], `${name}, ${scheme}`);
    const wider = await shown.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
    assert.ok(wider <= 0, `${name}, ${scheme}: ${wider} pixels wider than the window`);
    if (process.env.SCREENSHOTS) {
      mkdirSync(process.env.SCREENSHOTS, { recursive: true });
      await shown.screenshot({ path: `${process.env.SCREENSHOTS}/${name}-${scheme}.png`, fullPage: true });
    }
    await shown.context().close();
  }
}

test("the dashboard of Qdrant's users leads to the page", async () => {
  await page.goto(`${url}/dashboard`);
  assert.equal(page.url(), `${url}/ui/`);
  await page.getByRole("heading", { level: 1, name: "Cluster" }).waitFor();
  assert.match(await page.title(), /Cluster/);
});

test("the map shows three nodes, every shard's leader, and where each replica is", async () => {
  await visit("cluster");
  await page.getByText("All is well.").waitFor();
  assert.equal(await page.locator("li.node").count(), 3);
  assert.equal(await page.locator("li.node .badge.good").count(), 3);
  const status = await call("GET", "/nearring/cluster");
  assert.ok(status.shards.length >= 1 + 2 + 3);
  for (const group of status.shards) {
    const row = page.locator(`tr[data-shard="${group.shard}"]`);
    assert.equal(await row.locator("td").count(), 3);
    assert.equal(await row.locator("td.leads").count(), 1, `shard ${group.shard}`);
    assert.match(await row.locator("td.leads").innerText(), /leader\s+applied [\d,]+ \/ committed [\d,]+/);
  }
  // An embedded node's row: its positions are what the API says.
  const group = status.shards.find((one) => one.collection === "hostile");
  const leader = group.replicas.find((one) => one.node === group.leader);
  const cell = page.locator(`tr[data-shard="${group.shard}"] td.leads`);
  assert.match(await cell.innerText(), new RegExp(`${leader.points} point`));
  await look("cluster", "cluster", (shown) => shown.getByText("All is well.").waitFor());
});

test("the map refreshes itself", async () => {
  await visit("cluster");
  const tile = page.locator(".tile", { hasText: "Points" }).locator("dd");
  await tile.waitFor();
  const before = Number((await tile.innerText()).replace(/\D/g, ""));
  await call("PUT", "/collections/hostile/points?wait=true", { points: [{ id: 100, vector: [1, 1, 1, 1], payload: { text: "new" } }] });
  await page.waitForFunction((wanted) => [...document.querySelectorAll(".tile")].some((one) =>
    one.textContent.includes("Points") && Number(one.textContent.replace(/\D/g, "")) === wanted), before + 1);
});

test("collections are listed with their points, vectors and status", async () => {
  await visit("collections");
  const sample = page.locator('tr[data-collection="sample"]');
  await sample.getByText("green").waitFor();
  const { result } = await call("GET", "/collections/sample");
  assert.ok(result.points_count > 248);
  const text = await sample.innerText();
  assert.ok(text.includes(result.points_count.toLocaleString("en-US")), text);
  assert.match(text, /256 dimensions, cosine/);
  assert.match(text, /static256/);
  assert.match(await page.locator('tr[data-collection="hostile"]').innerText(), /4 dimensions, cosine[\s\S]*no/);
  await look("collections", "collections", (shown) => shown.locator(".badge").nth(1).waitFor());
});

test("one looks into the points of a collection, page by page, and through a filter", async () => {
  await visit("collections");
  await page.getByRole("link", { name: "sample" }).click();
  await page.getByRole("heading", { level: 1, name: "sample" }).waitFor();
  await page.locator(".point").nth(19).waitFor();
  assert.equal(await page.locator(".point").count(), 20);
  await page.getByRole("button", { name: "Show 20 more" }).click();
  await page.locator(".point").nth(39).waitFor();
  const ids = await page.locator(".point .id").allInnerTexts();
  assert.equal(new Set(ids).size, 40);
  await page.getByLabel("Filter (optional)").fill('{"must": [{"key": "document", "match": {"value": "heisenbug"}}]}');
  await page.getByRole("button", { name: "Show points" }).click();
  await page.getByText("which is all of them").waitFor();
  assert.ok((await page.locator(".point").count()) >= 1);
  for (const shown of await page.locator(".point .json").allInnerTexts()) assert.match(shown, /"document": "heisenbug"/);
  await page.getByLabel("Filter (optional)").fill("{nonsense");
  await page.getByRole("button", { name: "Show points" }).click();
  assert.match(await page.locator(".wrong").first().innerText(), /not a filter in JSON/);
  await look("collection", "collections/sample", (shown) => shown.locator(".point").nth(19).waitFor());
});

test("what is stored stays text, and a large number stays itself", async () => {
  await visit("collections/hostile");
  await page.locator(".point").nth(4).waitFor();
  const shown = await page.locator(".points").innerText();
  for (const text of HOSTILE) assert.ok(shown.includes(JSON.stringify(text)), text);
  assert.ok(shown.includes(`Point ${HOSTILE[0]}`));
  assert.ok(shown.includes(`"big": ${LARGE}`));
  await page.getByLabel("Show vectors").check();
  await page.getByRole("button", { name: "Show points" }).click();
  await page.locator(".point details").nth(4).waitFor();

  await visit("search/hostile");
  await page.getByLabel("By vector").check();
  await page.getByRole("textbox", { name: "Vector" }).fill("[1, 0, 0, 1]");
  await page.getByRole("button", { name: "Search" }).click();
  await page.locator(".hit").nth(4).waitFor();
  const hits = await page.locator(".hits").innerText();
  for (const text of HOSTILE) assert.ok(hits.includes(text), text);
  assert.equal(await page.locator("main script, main img, main svg").count(), 0);
  assert.equal(await page.evaluate("window.struck"), undefined);

  const large = page.locator(".hit", { has: page.getByRole("heading", { name: `Point ${LARGE}` }) });
  await large.getByRole("link", { name: "More like this" }).click();
  await page.getByRole("textbox", { name: "Id of the point" }).waitFor();
  assert.equal(await page.getByRole("textbox", { name: "Id of the point" }).inputValue(), LARGE);
  await page.locator(".hit").nth(3).waitFor();
  const titles = (await page.locator(".hit h3").allInnerTexts()).join("\n");
  assert.ok(!titles.includes(LARGE), "a point is not like itself");
});

test("a search by text gives hits with scores, complete, and leads on to what is like one of them", async () => {
  await visit("search/sample");
  await page.getByRole("searchbox", { name: "Text" }).fill("an error that vanishes when a debugger looks at it");
  await page.getByLabel("Hits").fill("5");
  await page.keyboard.press("Enter");
  await page.locator(".hit").first().waitFor();
  assert.equal(await page.locator(".hit").count(), 5);
  const scores = (await page.locator(".hit .score strong").allInnerTexts()).map(Number);
  assert.ok(scores.every((score, at) => score > 0 && score <= 1 && (at === 0 || score <= scores[at - 1])), String(scores));
  assert.match(await page.locator(".hits").innerText(), /heisenbug/i);
  assert.match(await page.locator(".coverage").innerText(), /complete\s+\d+ shards? answered/);
  await page.locator(".hit summary").first().click();
  assert.match(await page.locator(".hit .json").first().innerText(), /"document": /);
  const first = await page.locator(".hit").first().locator(".id").innerText();
  await page.locator(".hit").first().getByRole("link", { name: "More like this" }).click();
  await page.locator(".hit").nth(9).waitFor();
  const others = await page.locator(".hit .id").allInnerTexts();
  assert.ok(!others.includes(first));
  const like = `search/sample?like=${encodeURIComponent(JSON.stringify(first))}`;
  await look("search", like, (shown) => shown.locator(".hit").nth(9).waitFor());
});

test("what the API refuses is shown with its words", async () => {
  await visit("search/hostile");
  await page.getByLabel("By vector").check();
  await page.getByRole("textbox", { name: "Vector" }).fill("[1, 2]");
  complaints.length = 0;
  await page.getByRole("button", { name: "Search" }).click();
  const alert = page.getByRole("alert");
  await alert.waitFor();
  assert.match(await alert.innerText(), /Error 400\. .*has 2 components, the collection wants 4/);
  // The browser tells of the answer 400, and of nothing else.
  assert.ok(complaints.every((one) => one.includes("status of 400")), String(complaints));
  complaints.length = 0;
});

test("a question is answered as a stream, with citations that lead to their passages", async () => {
  await visit("ask/sample");
  await page.getByLabel("Question").fill("What do you call an error that vanishes as soon as you try to look at it with a debugger?");
  const streamed = page.waitForResponse((response) => response.url().endsWith("/v1/chat/completions"));
  await page.keyboard.press("Enter");
  assert.match((await streamed).headers()["content-type"], /^text\/event-stream/);
  await page.getByText(/^Written by extractive in /).waitFor();
  assert.match(await page.locator(".answer").innerText(), /heisenbug/i);
  assert.ok((await page.locator(".passage").count()) > 1);
  const cite = page.locator(".cite").first();
  const number = (await cite.innerText()).trim();
  await cite.focus();
  await page.keyboard.press("Enter");
  const passage = page.locator(`.passage[data-number="${number}"]`);
  assert.ok((await passage.getAttribute("class")).includes("chosen"));
  assert.ok(await passage.evaluate((one) => one === document.activeElement));
  assert.ok((await passage.getAttribute("class")).includes("cited"));
  assert.ok((await passage.locator(".text").innerText()).length > 40);
  await look("ask", "ask/sample", async (shown) => {
    await shown.getByLabel("Question").fill("What do you call an error that vanishes as soon as you look at it with a debugger?");
    await shown.getByRole("button", { name: "Ask" }).click();
    await shown.getByText(/^Written by extractive in /).waitFor();
  });
});

test("everything is reached with the keyboard", async () => {
  await visit("cluster");
  await page.getByText("All is well.").waitFor();
  await page.keyboard.press("Tab");
  assert.equal(await page.evaluate("document.activeElement.textContent"), "Skip to the content");
  const reached = [];
  for (let at = 0; at < 5; at += 1) {
    await page.keyboard.press("Tab");
    reached.push((await page.evaluate("document.activeElement.textContent")).trim());
  }
  assert.deepEqual(reached, ["nearring", "Cluster", "Collections", "Search", "Ask"]);
  await page.keyboard.press("Enter");
  await page.getByRole("heading", { level: 1, name: "Ask" }).waitFor();
  assert.equal(await page.evaluate("document.activeElement.tagName"), "H1");
});

const GOES_ON = "Every shard still has a leader: reads and writes go on.";

test("the page says so when a node is out, and when it is back", async () => {
  await visit("cluster");
  await page.getByText("All is well.").waitFor();
  process.kill(pids[2], "SIGSTOP");
  try {
    await page.getByText("1 node is out of reach.").waitFor({ timeout: 20_000 });
    await page.getByText(GOES_ON).waitFor({ timeout: 20_000 });
    assert.match(await page.locator('li[data-kind="node_out"]').innerText(), /node 3 at 127\.0\.0\.1:\d+ is out of reach/);
    assert.equal(await page.locator("li.node.out").getAttribute("data-node"), "3");
    assert.ok((await page.locator('td.out[data-node="3"]').count()) >= 6);
    assert.equal(await page.locator("td.leads").count(), (await call("GET", "/nearring/cluster")).shards.length);
    await look("node-out", "cluster", (shown) => shown.getByText(GOES_ON).waitFor({ timeout: 20_000 }));
  } finally {
    process.kill(pids[2], "SIGCONT");
  }
  await page.getByText("All is well.").waitFor({ timeout: 40_000 });
});

test("a node that is killed takes shards without other replicas along: the page and its searches say so", async () => {
  await call("PUT", "/collections/single", { vectors: { size: 2, distance: "Dot" }, shard_number: 6, replication_factor: 1 });
  const points = Array.from({ length: 60 }, (_, at) => ({ id: at, vector: [1, at], payload: { text: `number ${at}` } }));
  await call("PUT", "/collections/single/points?wait=true", { points });
  const { shards } = await call("GET", "/nearring/cluster");
  const single = shards.filter((one) => one.collection === "single");
  const lost = single.filter((one) => one.leader === 3).length;
  assert.ok(lost > 0 && lost < 6, `${lost} of six shards lie on node 3`);

  await visit("search/single");
  await page.getByRole("textbox", { name: "Vector" }).fill("[1, 1]");
  await page.getByRole("button", { name: "Search" }).click();
  await page.getByText("6 shards answered.").waitFor();

  await visit("cluster");
  await page.getByText("All is well.").waitFor();
  process.kill(pids[2], "SIGKILL");
  await page.getByText("1 node is out of reach.").waitFor({ timeout: 20_000 });
  await page.locator('li[data-kind="no_leader"]', { hasText: "of single has no leader: it takes no writes" }).first()
    .waitFor({ timeout: 20_000 });
  await page.waitForFunction((wanted) => document.querySelectorAll('li[data-kind="no_leader"]').length === wanted, lost, { timeout: 20_000 });
  await look("no-leader", "cluster", (shown) => shown.locator('li[data-kind="no_leader"]').first().waitFor({ timeout: 20_000 }));

  await visit("search/single");
  await page.getByRole("textbox", { name: "Vector" }).fill("[1, 1]");
  await page.getByRole("button", { name: "Search" }).click();
  await page.getByText(`Incomplete: ${6 - lost} of 6 shards answered.`).waitFor();
  assert.equal(await page.locator(".notice.warn li").count(), lost);
  assert.match(await page.locator(".notice.warn li").first().innerText(), /^Shard \d+: ./);
  assert.ok((await page.locator(".hit").count()) > 0);
  if (process.env.SCREENSHOTS) await page.screenshot({ path: `${process.env.SCREENSHOTS}/incomplete.png`, fullPage: true });
  // The other collections lost nothing.
  await visit("search/sample");
  await page.getByRole("searchbox", { name: "Text" }).fill("a trap for intruders");
  await page.keyboard.press("Enter");
  await page.locator(".coverage").getByText("complete", { exact: true }).waitFor();
});

test("two of three nodes out: whatever the last one says of itself, no group of three is said to take writes", async () => {
  process.kill(pids[1], "SIGSTOP");
  try {
    await visit("cluster");
    await page.getByText("2 nodes are out of reach.").waitFor({ timeout: 20_000 });
    const { shards } = await call("GET", "/nearring/cluster");
    const three = shards.filter((group) => group.replicas.length === 3);
    assert.ok(three.length >= 6);
    for (const group of three) {
      const row = page.locator(`tr[data-shard="${group.shard}"] th`);
      await row.getByText(/^no (leader|majority)$/).waitFor();
    }
    assert.equal(await page.getByText(GOES_ON).count(), 0);
    // What shards that are silent hold is not known.
    assert.match(await page.locator(".tile", { hasText: "Points" }).locator("dd").innerText(), /^[\d,]+ or more$/);
    await look("no-majority", "cluster", (shown) => shown.getByText("2 nodes are out of reach.").waitFor({ timeout: 20_000 }));
  } finally {
    process.kill(pids[1], "SIGCONT");
  }
  await page.getByText("1 node is out of reach.").waitFor({ timeout: 40_000 });
});

test("the browser had nothing to complain of, and no other host was asked", () => {
  assert.deepEqual(complaints, []);
  hosts.delete("");
  assert.deepEqual([...hosts], [new URL(url).host]);
});
