// The question box: an answer as it comes, with the passages that it cites.
import { events, get } from "./api.js";
import { badge, failure, field, fill, h, notice } from "./dom.js";
import { chooser } from "./search.js";

export function ask(body, { argument }) {
  const stopped = new AbortController();
  form(body, argument, stopped.signal).catch((error) => {
    if (error.name !== "AbortError") fill(body, failure(error));
  });
  return () => stopped.abort();
}

async function form(body, wanted, signal) {
  const all = (await get("/nearring/collections", signal)).collections;
  const collections = all.filter((collection) => collection.text !== null);
  if (collections.length === 0) {
    fill(body, notice("plain", "No collection can be asked yet: none has vectors that an embedder of this router gives. Put texts "
      + "into one, for example with ", h("code", {}, "nearring import FOLDER --collection notes --create"), "."));
    return;
  }
  const select = chooser(collections, wanted);
  const question = h("textarea", { rows: "2", placeholder: "Ask what the stored texts know" });
  const questionBox = field("Question", question, "Enter sends it; Shift and Enter begin a new line.");
  const send = h("button", { type: "submit", class: "main" }, "Ask");
  const stop = h("button", { type: "button", hidden: true }, "Stop");
  const result = h("div", { class: "results" });
  let run = new AbortController();
  signal.addEventListener("abort", () => run.abort());
  stop.addEventListener("click", () => run.abort());
  question.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      event.target.form.requestSubmit();
    }
  });
  const submit = async (event) => {
    event.preventDefault();
    const text = question.value.trim();
    questionBox.refuse(text === "" ? "Give a question." : "");
    if (text === "") {
      question.focus();
      return;
    }
    run.abort();
    run = new AbortController();
    const mine = run;
    send.disabled = true;
    stop.hidden = false;
    try {
      await answer(result, select.value, text, mine.signal);
    } finally {
      if (mine === run) {
        send.disabled = false;
        stop.hidden = true;
      }
    }
  };
  fill(body, h("form", { class: "card form", onsubmit: submit, novalidate: true }, field("Collection", select), questionBox,
    h("p", { class: "actions" }, send, stop)), result);
}

async function answer(result, collection, question, signal) {
  const said = h("div", { class: "answer", "aria-live": "polite", "aria-busy": "true" });
  const state = h("p", { class: "hint", role: "status" }, "Looking for passages…");
  const passages = h("ol", { class: "passages" });
  const sources = h("section", { hidden: true }, h("h2", {}, "Passages"), passages);
  fill(result, h("section", { class: "card" }, h("h2", {}, "Answer"), said, state), sources);
  const cards = new Map();
  const began = performance.now();
  let text = "";
  const goTo = (number) => {
    const card = cards.get(number);
    for (const other of cards.values()) other.classList.remove("chosen");
    card.classList.add("chosen");
    const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
    card.scrollIntoView({ block: "center", behavior: calm ? "auto" : "smooth" });
    card.focus({ preventScroll: true });
  };
  /** The text so far; each `[n]` that names a passage leads there. */
  const write = () => {
    const parts = text.split(/(\[\d+\])/);
    fill(said, parts.map((part) => {
      const number = Number(part.slice(1, -1));
      if (!/^\[\d+\]$/.test(part) || !cards.has(number)) return part;
      const label = `Go to passage ${number}`;
      return h("button", { type: "button", class: "cite", "aria-label": label, title: label, onclick: () => goTo(number) }, number);
    }));
  };
  try {
    const asked = { model: `nearring/${collection}`, messages: [{ role: "user", content: question }], stream: true };
    let ended = null;
    for await (const event of events("/v1/chat/completions", asked, signal)) {
      const ours = event.nearring ?? {};
      if (ours.passages) {
        for (const passage of ours.passages) {
          const card = passageCard(passage);
          cards.set(passage.number, card);
          passages.append(card);
        }
        sources.hidden = cards.size === 0;
        fill(state, "Writing…");
        if (ours.complete_coverage === false) {
          said.before(notice("warn", h("strong", {}, "Incomplete. "),
            "Not every shard answered: passages that lie there are missing."));
        }
      }
      for (const number of ours.citations ?? []) cards.get(number)?.classList.add("cited");
      const piece = event.choices?.[0]?.delta?.content ?? "";
      if (piece !== "") {
        text += piece;
        write();
      }
      if (ours.cited) {
        ended = ours;
        for (const number of ours.cited) cards.get(number)?.classList.add("cited");
      }
    }
    const seconds = ((performance.now() - began) / 1000).toFixed(1);
    const by = ended?.generator ? ` by ${ended.generator}` : "";
    fill(state, ended?.answered === false && [badge("warn", "not answered"), " The passages do not answer this. "],
      `Written${by} in ${seconds} s.`);
  } catch (error) {
    if (error.name === "AbortError") fill(state, "Stopped.");
    else {
      fill(state);
      state.after(failure(error));
    }
  } finally {
    said.setAttribute("aria-busy", "false");
  }
}

function passageCard(passage) {
  const title = passage.title || passage.document || `Point ${passage.id}`;
  const where = [passage.heading, passage.document !== title && passage.document].filter(Boolean).join(" · ");
  return h("li", { class: "card passage", tabindex: "-1", "data-number": passage.number },
    h("h3", {}, h("span", { class: "rank" }, passage.number), title, h("span", { class: "badge lead mark" }, "cited")),
    h("p", { class: "hint" }, where && `${where} · `, "id ", h("code", { class: "id" }, String(passage.id)),
      ` · score ${Number(passage.score).toFixed(4)}`),
    h("p", { class: "text" }, passage.text));
}
