// Collections: what each holds, and a look into its points.
import { collectionPath, get, parse, post } from "./api.js";
import { badge, count, failure, field, fill, h, notice, number, pretty } from "./dom.js";

/** How many collections are asked about at a time. */
const AT_ONCE = 4;
/** Points on a page. */
const PAGE = 20;

export function collections(body, { argument, heading }) {
  const stopped = new AbortController();
  const shown = argument ? one(body, argument, heading, stopped.signal) : all(body, stopped.signal);
  shown.catch((error) => {
    if (error.name !== "AbortError") body.append(failure(error));
  });
  return () => stopped.abort();
}

const green = (info) => (info.status === "green"
  ? badge("good", "green") : badge("warn", info.status ?? "unknown"));

/** A vector's settings on one line. */
export function vectorText(vector) {
  const name = vector.name === "" ? "" : `${vector.name}: `;
  const size = vector.dimension === null ? [] : [count(vector.dimension, "dimension")];
  const kind = vector.kind === "dense" ? [] : [vector.kind];
  return `${name}${[...kind, ...size, vector.metric].join(", ")}`;
}

async function all(body, signal) {
  const { collections: list } = await get("/nearring/collections", signal);
  if (list.length === 0) {
    fill(body, notice("plain", "There is no collection yet. Create one with any of Qdrant's clients, or with ",
      h("code", {}, "nearring collection create"), "."));
    return;
  }
  const waiting = [];
  const row = (collection) => {
    const points = h("td", { "data-label": "Points", class: "number" }, "…");
    const status = h("td", { "data-label": "Status" }, "…");
    waiting.push(async () => {
      try {
        const { result } = await get(collectionPath(collection.name), signal);
        fill(points, number(result.points_count));
        fill(status, green(result));
      } catch (error) {
        if (error.name === "AbortError") return;
        fill(points, "–");
        fill(status, badge("bad", "error"), " ", h("span", { class: "hint" }, error.message));
      }
    });
    return h("tr", { "data-collection": collection.name },
      h("th", { scope: "row" }, h("a", { href: `#collections/${encodeURIComponent(collection.name)}` }, collection.name),
        collection.aliases.length > 0 && h("div", { class: "hint" }, `also ${collection.aliases.join(", ")}`)),
      points, status,
      h("td", { "data-label": "Vectors" }, collection.vectors.map((vector) => h("div", {}, vectorText(vector)))),
      h("td", { "data-label": "Shards" }, `${number(collection.shards)} × ${count(collection.replication_factor, "replica")}`),
      h("td", { "data-label": "Search by text" }, collection.text ? collection.text.embedder : "no"));
  };
  const titles = ["Collection", "Points", "Status", "Vectors", "Shards", "Search by text"];
  const head = titles.map((title, at) => h("th", { scope: "col", class: at === 1 ? "number" : "" }, title));
  fill(body, h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Collections" },
    h("table", { class: "list" }, h("thead", {}, h("tr", {}, head)), h("tbody", {}, list.map(row)))));
  const next = async () => {
    for (let work = waiting.shift(); work; work = waiting.shift()) await work();
  };
  await Promise.all(Array.from({ length: AT_ONCE }, next));
}

async function one(body, name, heading, signal) {
  heading.textContent = name;
  const back = h("p", {}, h("a", { href: "#collections" }, "← All collections"));
  fill(body, back, h("p", { class: "hint" }, "Asking…"));
  let told;
  let listed;
  try {
    [told, listed] = await Promise.all([get(collectionPath(name), signal), get("/nearring/collections", signal)]);
  } catch (error) {
    fill(body, back);
    throw error;
  }
  const info = told.result;
  const collection = listed.collections.find((found) => found.name === name || found.aliases.includes(name));
  const fact = (label, ...value) => [h("dt", {}, label), h("dd", {}, ...value)];
  const link = (view, text) => h("a", { class: "button", href: `#${view}/${encodeURIComponent(name)}` }, text);
  const facts = h("dl", { class: "facts card" },
    fact("Status", green(info), info.status !== "green" && " segments are being built; searches are complete all the same"),
    fact("Points", number(info.points_count)),
    fact("Vectors in segments", number(info.indexed_vectors_count)),
    fact("Segments", number(info.segments_count)),
    collection && fact("Vectors", collection.vectors.map((vector) => h("div", {}, vectorText(vector)))),
    collection && fact("Shards", `${number(collection.shards)}, ${count(collection.replication_factor, "replica")} each`),
    collection && fact("Search by text", collection.text ? `with ${collection.text.embedder}` : "no embedder fits"),
    collection?.aliases.length > 0 && fact("Aliases", collection.aliases.join(", ")));
  const fields = Object.entries(info.payload_schema ?? {});
  const indexed = fields.length === 0
    ? h("p", { class: "hint" }, "No field of the payload is indexed; filters work all the same.")
    : h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Indexed fields" },
      h("table", { class: "list" },
        h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Field"), h("th", { scope: "col" }, "Type"),
          h("th", { scope: "col", class: "number" }, "Points that have it"))),
        h("tbody", {}, fields.map(([path, schema]) => h("tr", {}, h("th", { scope: "row" }, path),
          h("td", { "data-label": "Type" }, schema.data_type),
          h("td", { "data-label": "Points that have it", class: "number" }, number(schema.points)))))));
  fill(body, back,
    h("p", { class: "actions" }, link("search", "Search in it"), collection?.text && link("ask", "Ask it")),
    facts, h("h2", {}, "Indexed fields"), indexed, h("h2", {}, "Points"), points(name, signal));
}

/** Reads a filter that was typed; undefined where nothing was. Says in the field what is wrong. */
export function readFilter(box, text) {
  box.refuse("");
  if (text.trim() === "") return undefined;
  try {
    const filter = parse(text);
    if (filter === null || typeof filter !== "object" || Array.isArray(filter)) throw new Error("it is no object");
    return filter;
  } catch (error) {
    box.refuse(`This is not a filter in JSON: ${error.message}`);
    box.querySelector("textarea").focus();
    return null;
  }
}

/** The field for a filter. */
export function filterField() {
  const text = h("textarea", { rows: "2", spellcheck: "false", class: "code",
    placeholder: '{"must": [{"key": "lang", "match": {"value": "en"}}]}' });
  return [text, field("Filter (optional)", text, "JSON, in Qdrant's filter language")];
}

/** A look into the points. */
function points(name, signal) {
  const [text, filterBox] = filterField();
  const withVectors = h("input", { type: "checkbox", id: "with-vectors" });
  const list = h("ol", { class: "points" });
  const after = h("div", { "aria-live": "polite" });
  let run = 0;
  const load = async (filter, offset) => {
    const mine = run;
    fill(after, h("p", { class: "hint" }, "Reading…"));
    try {
      const vectors = withVectors.checked;
      const body = { limit: PAGE, with_payload: true, with_vector: vectors, filter, offset };
      const { result } = await post(collectionPath(name, "/points/scroll"), body, signal);
      if (mine !== run) return;
      list.append(...result.points.map((point) => h("li", { class: "card point" },
        h("h3", {}, "Point ", h("code", { class: "id" }, String(point.id))),
        h("a", { class: "more", href: likeLink(name, point.id) }, "More like this"),
        pretty(point.payload ?? {}),
        vectors && h("details", {}, h("summary", {}, "Vectors"), pretty(point.vector ?? null)))));
      const next = result.next_page_offset ?? null;
      const seen = `${count(list.children.length, "point")} shown${next === null ? ", which is all of them." : "."}`;
      fill(after, h("p", { class: "hint" }, list.children.length === 0 ? "No point matches." : seen),
        next !== null && h("button", { type: "button", onclick: () => load(filter, next) }, `Show ${PAGE} more`));
    } catch (error) {
      if (error.name !== "AbortError" && mine === run) fill(after, failure(error));
    }
  };
  const start = (event) => {
    event?.preventDefault();
    const filter = readFilter(filterBox, text.value);
    if (filter === null) return;
    run += 1;
    fill(list);
    load(filter, undefined);
  };
  const form = h("form", { class: "card form", onsubmit: start }, filterBox,
    h("div", { class: "check" }, withVectors, h("label", { for: withVectors.id }, "Show vectors")),
    h("button", { type: "submit" }, "Show points"));
  start();
  return h("div", {}, form, list, after);
}

/** The search for what is like a point. Texts are in quotes, so that "1" is not 1. */
export function likeLink(name, id) {
  const like = encodeURIComponent(JSON.stringify(id));
  return `#search/${encodeURIComponent(name)}?like=${like}`;
}
