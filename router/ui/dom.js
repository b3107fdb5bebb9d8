// Elements, made from data. Text goes in as text nodes and nothing is ever read as HTML, so that what is stored in a point can
// be shown and can do nothing.

import { Exact } from "./api.js";

/**
 * An element. `properties`: `on…` are listeners, `class` and everything else are attributes; true is an attribute without a
 * value, and false, null and undefined leave it out. Children are nodes, or anything else as text.
 */
export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === false || value === null || value === undefined) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...flat(children));
  return element;
}

/** Children without those that are left out. */
function flat(children) {
  return children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false)
    .map((child) => (child instanceof Node ? child : String(child)));
}

/** Puts these in place of what an element has. */
export function fill(element, ...children) {
  element.replaceChildren(...flat(children));
}

/** Counts as the reader writes them. */
export function number(value) {
  return value === null || value === undefined ? "–" : Number(value).toLocaleString();
}

/** So many things. */
export function count(value, one, many = `${one}s`) {
  return `${number(value)} ${Number(value) === 1 ? one : many}`;
}

/** Bytes in the largest fitting unit. */
export function bytes(value) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
  let amount = Number(value);
  let unit = 0;
  while (amount >= 1024 && unit + 1 < units.length) {
    amount /= 1024;
    unit += 1;
  }
  return `${amount < 10 && unit > 0 ? amount.toFixed(1) : Math.round(amount)} ${units[unit]}`;
}

/** A word in a coloured frame: `tone` is good, warn, bad or plain. */
export function badge(tone, text) {
  return h("span", { class: `badge ${tone}` }, text);
}

/** A message. Those that are bad are read aloud at once. */
export function notice(tone, ...children) {
  return h("div", { class: `notice ${tone}`, role: tone === "bad" ? "alert" : "status" }, ...children);
}

/** An error, with what the API said. */
export function failure(error) {
  const status = error.status ? h("strong", {}, `Error ${error.status}. `) : h("strong", {}, "Error. ");
  return notice("bad", status, error.message);
}

let last = 0;

/** A labelled form control: the label stands above it, the hint and what is wrong with it below. */
export function field(label, control, hint) {
  last += 1;
  control.id = `field-${last}`;
  const notes = [];
  if (hint) notes.push(h("span", { class: "hint", id: `hint-${last}` }, hint));
  const wrong = h("span", { class: "wrong", id: `wrong-${last}` });
  notes.push(wrong);
  control.setAttribute("aria-describedby", notes.map((note) => note.id).join(" "));
  const box = h("div", { class: "field" }, h("label", { for: control.id }, label), control, ...notes);
  box.refuse = (reason) => {
    wrong.textContent = reason;
    if (reason) control.setAttribute("aria-invalid", "true");
    else control.removeAttribute("aria-invalid");
  };
  return box;
}

/** JSON over several lines. Lists of plain values stay on one line. `Exact` numbers are written as they came. */
export function pretty(value) {
  const code = h("code");
  write(code, value, "");
  return h("pre", { class: "json", tabindex: "0", role: "group", "aria-label": "JSON" }, code);
}

function write(into, value, indent) {
  const token = (kind, text) => into.append(h("span", { class: kind }, text));
  const inner = `${indent}  `;
  if (Array.isArray(value)) {
    const plain = value.every((item) => item === null || typeof item !== "object" || item instanceof Exact);
    into.append("[");
    value.forEach((item, at) => {
      if (plain) into.append(at > 0 ? ", " : "");
      else into.append(at > 0 ? ",\n" : "\n", inner);
      write(into, item, inner);
    });
    into.append(plain ? "]" : `\n${indent}]`);
  } else if (value !== null && typeof value === "object" && !(value instanceof Exact)) {
    const entries = Object.entries(value);
    into.append("{");
    entries.forEach(([key, item], at) => {
      into.append(at > 0 ? ",\n" : "\n", inner);
      token("key", JSON.stringify(key));
      into.append(": ");
      write(into, item, inner);
    });
    into.append(entries.length > 0 ? `\n${indent}}` : "}");
  } else if (typeof value === "string") {
    token("string", JSON.stringify(value));
  } else {
    token(value === null || typeof value === "boolean" ? "word" : "number", String(value));
  }
}
