// The page: which part is shown follows the address after the `#`.
import { ask } from "./ask.js";
import { cluster } from "./cluster.js";
import { collections } from "./collections.js";
import { h } from "./dom.js";
import { search } from "./search.js";

/** Each shows itself in an element and returns what ends it. */
const VIEWS = {
  cluster: ["Cluster", cluster],
  collections: ["Collections", collections],
  search: ["Search", search],
  ask: ["Ask", ask],
};

let stop = () => {};

function show(first) {
  const whole = location.hash.slice(1);
  // The link that skips the navigation is no part of the page.
  if (whole === "main") return;
  const [path, query = ""] = whole.split("?");
  const [name, ...rest] = path.split("/");
  const known = Object.hasOwn(VIEWS, name) ? name : "cluster";
  const [title, view] = VIEWS[known];
  const argument = decode(rest.join("/"));
  document.title = `${argument ? `${argument} · ` : ""}${title} · nearring`;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.getAttribute("href") === `#${known}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  stop();
  const main = document.querySelector("main");
  const heading = h("h1", { tabindex: "-1" }, title);
  const body = h("div", { class: "view" });
  main.replaceChildren(heading, body);
  stop = view(body, { argument, query: new URLSearchParams(query), heading }) ?? (() => {});
  // Whoever came here by a link hears where they are; a page that is just opened begins at its top.
  if (!first) {
    heading.focus({ preventScroll: true });
    scrollTo(0, 0);
  }
}

function decode(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

addEventListener("hashchange", () => show(false));
show(true);
