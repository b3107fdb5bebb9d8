// The search box: by text, by a point that hits are to be like, or by a vector.
import { collectionPath, get, parse, post } from "./api.js";
import { filterField, likeLink, readFilter, vectorText } from "./collections.js";
import { badge, count, failure, field, fill, h, notice, number, pretty } from "./dom.js";

const MODES = [["text", "By text"], ["id", "More like a point"], ["vector", "By vector"]];
/** Where texts usually are. */
const TEXTS = ["text", "page_content", "content", "body", "chunk", "description"];
const TITLES = ["title", "name", "document"];

export function search(body, { argument, query }) {
  const stopped = new AbortController();
  form(body, argument, query.get("like"), stopped.signal).catch((error) => {
    if (error.name !== "AbortError") fill(body, failure(error));
  });
  return () => stopped.abort();
}

/** A choice of collection, at `wanted` where it is there. */
export function chooser(collections, wanted) {
  const chosen = (one) => one.name === wanted || one.aliases.includes(wanted);
  const option = (one) => h("option", { value: one.name, selected: chosen(one) }, one.name);
  return h("select", {}, collections.map(option));
}

async function form(body, wanted, like, signal) {
  const { collections } = await get("/nearring/collections", signal);
  if (collections.length === 0) {
    fill(body, notice("plain", "There is no collection to search in yet."));
    return;
  }
  const select = chooser(collections, wanted);
  const text = h("input", { type: "search", autocomplete: "off", placeholder: "What are you looking for?" });
  const id = h("input", { type: "text", autocomplete: "off", spellcheck: "false", class: "code" });
  const vector = h("textarea", { rows: "3", spellcheck: "false", class: "code", placeholder: "[0.12, -0.4, …]" });
  const using = h("select", {});
  const limit = h("input", { type: "number", min: "1", max: "1000", value: "10", required: true });
  const [filterText, filterBox] = filterField();
  const inputs = { text, id, vector };
  const boxes = {
    text: field("Text", text),
    id: field("Id of the point", id, 'Digits are a number; "in quotes" they are a text. Anything else is a text or a UUID.'),
    vector: field("Vector", vector,
      'A list of numbers; of a sparse vector {"indices": […], "values": […]}; of a multi-vector a list of lists.'),
  };
  const usingBox = field("Compared with the vector", using);
  const radios = MODES.map(([mode, label]) => {
    const radio = h("input", { type: "radio", name: "mode", value: mode, id: `mode-${mode}`, onchange: () => switched() });
    return [radio, h("label", { for: radio.id }, label)];
  });
  const result = h("div", { class: "results" });
  const mode = () => radios.find(([radio]) => radio.checked)[0].value;
  const current = () => collections.find((one) => one.name === select.value);
  const switched = () => {
    for (const [name, box] of Object.entries(boxes)) box.hidden = name !== mode();
    usingBox.hidden = mode() === "text" || current().vectors.length < 2;
    text.disabled = current().text === null;
    boxes.text.refuse(text.disabled ? "No embedder of this router fits this collection; search it by vector or by a point." : "");
  };
  const chosen = () => {
    fill(using, current().vectors.map((one) => h("option", { value: one.name }, vectorText(one))));
    switched();
  };
  select.addEventListener("change", chosen);
  let run = new AbortController();
  signal.addEventListener("abort", () => run.abort());

  const submit = async (event) => {
    event?.preventDefault();
    const filter = readFilter(filterBox, filterText.value);
    if (filter === null) return;
    const asked = { filter, limit: Number(limit.value) };
    const kind = mode();
    boxes[kind].refuse("");
    const given = inputs[kind].value.trim();
    if (given === "") {
      switched();
      if (!text.disabled || kind !== "text") boxes[kind].refuse("Give something to search for.");
      inputs[kind].focus();
      return;
    }
    if (kind === "text") {
      asked.text = given;
    } else {
      try {
        asked[kind] = kind === "id" ? readId(given) : parse(given);
      } catch (error) {
        boxes[kind].refuse(`This cannot be read: ${error.message}`);
        inputs[kind].focus();
        return;
      }
      asked.using = using.value;
    }
    run.abort();
    run = new AbortController();
    const mine = run;
    fill(result, h("p", { class: "hint", role: "status" }, "Searching…"));
    const began = performance.now();
    try {
      const path = `/nearring${collectionPath(select.value, "/search")}`;
      const answer = await post(path, asked, mine.signal);
      fill(result, ...shown(select.value, answer, performance.now() - began));
    } catch (error) {
      if (error.name !== "AbortError") fill(result, failure(error));
    }
  };
  fill(body, h("form", { class: "card form", onsubmit: submit, novalidate: true },
    h("div", { class: "pair" }, field("Collection", select), field("Hits", limit)),
    h("fieldset", { class: "modes" }, h("legend", {}, "Search"), radios.map(([radio, label]) => h("span", {}, radio, label))),
    Object.values(boxes), usingBox, filterBox,
    h("button", { type: "submit", class: "main" }, "Search")), result);
  const first = like !== null ? "id" : current().text === null ? "vector" : "text";
  radios.find(([radio]) => radio.value === first)[0].checked = true;
  chosen();
  if (like !== null) {
    id.value = typeof parse(like) === "string" && !looksLikeText(parse(like)) ? like : String(parse(like));
    submit();
  }
}

/** Whether an id can be typed without quotes and stays a text. */
const looksLikeText = (id) => !/^\s*(\d+|".*")\s*$/s.test(id);

/** An id as it was typed. */
function readId(given) {
  return /^\d+$/.test(given) || /^".*"$/s.test(given) ? parse(given) : given;
}

/** The first text under one of these names. */
function firstText(payload, names) {
  const found = names.find((name) => typeof payload[name] === "string" && payload[name].trim() !== "");
  return found === undefined ? null : payload[found].replace(/\s+/g, " ").trim();
}

const MEANING = {
  cosine: "cosine similarity: 1 is the same direction",
  dot: "dot product: more is nearer",
  euclid: "distance: less is nearer",
};

function shown(collection, answer, took) {
  const { hits, coverage } = answer;
  const scores = hits.map((hit) => hit.score ?? 0);
  const most = Math.max(...scores.map(Math.abs), Number.MIN_VALUE);
  const item = (hit, at) => {
    const bar = h("span", { class: "bar", "aria-hidden": "true" }, h("span"));
    const share = answer.higher_is_nearer ? Math.max(0, hit.score) / most : 1 - Math.abs(hit.score) / (most * 1.25);
    bar.firstChild.style.width = `${Math.round(100 * Math.min(1, Math.max(0, share)))}%`;
    const title = firstText(hit.payload, TITLES);
    const text = firstText(hit.payload, TEXTS);
    return h("li", { class: "card hit" },
      h("h3", {}, h("span", { class: "rank", "aria-hidden": "true" }, `${at + 1}`), title ?? `Point ${hit.id}`),
      h("p", { class: "score" }, bar, h("span", {}, "score ", h("strong", {}, Number(hit.score).toFixed(4)))),
      text && h("p", { class: "snippet" }, text.length > 400 ? `${text.slice(0, 400)}…` : text),
      h("p", { class: "hint" }, "id ", h("code", { class: "id" }, String(hit.id)), " · ",
        h("a", { href: likeLink(collection, hit.id) }, "More like this")),
      h("details", {}, h("summary", {}, "Payload"), pretty(hit.payload)));
  };
  const means = MEANING[answer.metric] ?? "";
  const by = answer.embedder ? ` Embedded with ${answer.embedder}.` : "";
  return [
    h("p", { class: "hint", role: "status" }, `${count(hits.length, "hit")} in ${number(Math.round(took))} ms; ${means}.${by}`),
    covered(coverage),
    hits.length === 0 ? notice("plain", "Nothing matches.") : h("ol", { class: "hits" }, hits.map(item)),
  ];
}

/** Which shards an answer rests on. */
function covered({ complete, shards }) {
  const answered = shards.filter((shard) => shard.state === "searched").length;
  if (complete) return h("p", { class: "coverage" }, badge("good", "complete"), ` ${count(answered, "shard")} answered.`);
  const silent = shards.filter((shard) => shard.state !== "searched");
  return notice("warn", h("strong", {}, `Incomplete: ${answered} of ${count(shards.length, "shard")} answered. `),
    "Points of the others are missing.",
    h("ul", {}, silent.map((shard) => h("li", {}, `Shard ${shard.shard}: ${shard.reason ?? "not asked"}`))));
}
