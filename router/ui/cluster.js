// The cluster map: nodes, shards, and each replica as its node describes it.
import { get } from "./api.js";
import { badge, bytes, count, failure, fill, h, notice, number } from "./dom.js";

/** Milliseconds between two looks. */
const EVERY = 2000;

export function cluster(body) {
  const stopped = new AbortController();
  const health = h("div", { "aria-live": "polite" });
  const map = h("div");
  const age = h("p", { class: "hint age" });
  fill(body, health, map, age);
  fill(map, h("p", { class: "hint" }, "Asking the nodes…"));
  let shown = "";
  let saying = "";
  let timer;

  const say = (key, ...children) => {
    if (saying === key) return;
    saying = key;
    fill(health, ...children);
  };
  const look = async () => {
    // Nobody looks at a page in the background.
    if (!document.hidden) {
      try {
        const status = await get("/nearring/cluster", stopped.signal);
        const key = JSON.stringify(status);
        if (key !== shown) {
          shown = key;
          fill(map, summary(status), nodes(status), ...shards(status));
        }
        map.classList.remove("stale");
        say(JSON.stringify([status.problems, status.nodes.length]), ...verdict(status));
        fill(age, `Looked at ${new Date().toLocaleTimeString()}; looks again every ${EVERY / 1000} seconds. `,
          `Cluster ${status.cluster}, placement epoch ${number(status.epoch)}, router ${status.version} `,
          `(memory ${bytes(status.router.rss_bytes)}).`);
      } catch (error) {
        if (error.name === "AbortError") return;
        map.classList.add("stale");
        say(`failed: ${error.message}`, failure(error),
          shown && h("p", { class: "hint" }, "What is shown below was seen before."));
      }
    }
    if (!stopped.signal.aborted) timer = setTimeout(look, EVERY);
  };
  const seen = () => {
    if (document.hidden) return;
    clearTimeout(timer);
    look();
  };
  document.addEventListener("visibilitychange", seen);
  look();
  return () => {
    stopped.abort();
    clearTimeout(timer);
    document.removeEventListener("visibilitychange", seen);
  };
}

/** The most problems that are listed; the worst come first. */
const PROBLEMS = 20;
const SERIOUS = ["no_leader", "no_majority", "node_out", "disk"];

function verdict({ problems, nodes: all, shards: groups }) {
  if (problems.length === 0) {
    const led = `${count(all.length, "node is up", "nodes are up")}, and ${groups.length === 1 ? "the meta group has a leader"
      : `the meta group and ${count(groups.length - 1, "shard has its leader", "shards have their leaders")}`}.`;
    return [notice("good", h("strong", {}, "All is well. "), led)];
  }
  const serious = problems.some((problem) => SERIOUS.includes(problem.kind));
  const out = problems.filter((problem) => problem.kind === "node_out").length;
  const headless = problems.filter((problem) => problem.kind === "no_leader").length;
  const alone = problems.filter((problem) => problem.kind === "no_majority").length;
  const head = [
    out > 0 && `${count(out, "node is", "nodes are")} out of reach.`,
    headless > 0 && `${count(headless, "group has", "groups have")} no leader.`,
    alone > 0 && `${count(alone, "group has", "groups have")} no majority.`,
    out > 0 && headless + alone === 0 && "Every shard still has a leader: reads and writes go on.",
  ].filter(Boolean).join(" ");
  const more = problems.length - PROBLEMS;
  const list = h("ul", {}, problems.slice(0, PROBLEMS).map((problem) => h("li", { "data-kind": problem.kind }, problem.text)),
    more > 0 && h("li", {}, `and ${number(more)} more: the map shows them`));
  return [notice(serious ? "bad" : "warn", head && h("strong", {}, head), list)];
}

function summary({ nodes: all, shards: groups }) {
  const data = groups.filter((group) => group.kind === "data");
  const points = data.reduce((sum, group) => sum + Math.max(0, ...group.replicas.map((one) => Number(one.points ?? 0))), 0);
  const silent = data.some((group) => !group.replicas.some((one) => one.reported));
  const tile = (label, value, tone = "") => h("div", { class: `tile ${tone}` }, h("dt", {}, label), h("dd", {}, value));
  const up = all.filter((node) => node.reachable).length;
  const led = groups.filter((group) => group.leader !== null && group.majority).length;
  return h("dl", { class: "tiles" },
    tile("Nodes up", `${up} of ${all.length}`, up === all.length ? "good" : "bad"),
    tile("Groups that take writes", `${led} of ${groups.length}`, led === groups.length ? "good" : "bad"),
    tile("Collections", number(new Set(data.map((group) => group.collection)).size)),
    tile("Points", silent ? `${number(points)} or more` : number(points)));
}

function nodes({ nodes: all, shards: groups }) {
  const card = (node) => {
    const leads = groups.filter((group) => group.leader === node.node).length;
    const fact = (label, value) => [h("dt", {}, label), h("dd", {}, value)];
    return h("li", { class: `card node ${node.reachable ? "" : "out"}`, "data-node": node.node },
      h("h3", {}, `Node ${node.node} `, node.reachable ? badge("good", "up") : badge("bad", "out of reach"),
        node.refusing_writes && badge("warn", "refuses writes")),
      h("p", { class: "address" }, node.address, node.zone && ` · zone ${node.zone}`),
      node.reachable
        ? h("dl", { class: "facts" }, fact("Leads", count(leads, "group")), fact("Memory", bytes(node.rss_bytes)),
          fact("Log", bytes(node.log_bytes)), fact("Disk free", bytes(node.disk_free_bytes)))
        : h("p", { class: "why" }, node.error));
  };
  return h("section", {}, h("h2", {}, "Nodes"), h("ul", { class: "cards" }, all.map(card)));
}

function shards(status) {
  const names = [...new Set(status.shards.map((group) => group.collection))];
  return names.map((name) => {
    const groups = status.shards.filter((group) => group.collection === name);
    const title = name === null ? "Meta group" : name;
    const about = name === null
      ? "Decides which collections there are, and where their shards lie."
      : `${count(groups.length, "shard")}, each a group of replicas with a log of its own.`;
    const head = h("tr", {}, h("th", { scope: "col" }, name === null ? "Group" : "Shard"),
      status.nodes.map((node) => h("th", { scope: "col" }, `Node ${node.node}`)));
    const rows = groups.map((group) => h("tr", { "data-shard": group.shard },
      h("th", { scope: "row" }, name === null ? "meta" : `Shard ${group.shard}`,
        group.state === "creating" ? badge("warn", "being created") 
          : group.leader === null ? badge("bad", "no leader") : !group.majority && badge("bad", "no majority")),
      status.nodes.map((node) => cell(group, node))));
    return h("section", { class: "shards" },
      h("h2", {}, name === null ? title : h("a", { href: `#collections/${encodeURIComponent(name)}` }, title)), h("p", { class: "hint" }, about),
      h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `Replicas of ${title}` },
        h("table", { class: "map" }, h("thead", {}, head), h("tbody", {}, rows))));
  });
}

function cell(group, node) {
  const replica = group.replicas.find((one) => one.node === node.node);
  const label = { "data-label": `Node ${node.node}`, "data-node": node.node };
  if (!replica) return h("td", { ...label, class: "none" }, h("span", { class: "hint" }, "no replica"));
  if (!replica.reported) {
    return h("td", { ...label, class: "out" }, node.reachable ? badge("warn", "missing") : badge("bad", "out of reach"));
  }
  const leads = group.leader === replica.node;
  // Of several that say they lead, one is right.
  const role = replica.role === "leader" && !leads ? "was leader" : replica.role;
  const tone = leads ? "lead" : { follower: "plain", learner: "plain" }[role] ?? "warn";
  const leader = group.replicas.find((one) => one.node === group.leader);
  const behind = leader ? Math.max(0, Number(leader.committed_index) - Number(replica.applied_index)) : 0;
  const segments = replica.segments.length;
  const indexed = replica.segments.reduce((sum, segment) => sum + Number(segment.live), 0);
  const remote = replica.segments.filter((segment) => !segment.local).length;
  return h("td", { ...label, class: leads ? "leads" : "" },
    h("div", {}, badge(tone, role), behind > 0 && badge("plain", `${number(behind)} behind`),
      replica.pending_seals > 0 && badge("warn", "building")),
    h("div", { class: "position", title: "The last log entry applied here, and the last that is known to be committed" },
      `applied ${number(replica.applied_index)} / committed ${number(replica.committed_index)}`),
    group.kind === "data" && h("div", {}, count(replica.points, "point")),
    group.kind === "data" && h("div", { class: "hint" },
      segments > 0 ? `${count(segments, "segment")} (${count(indexed, "vector")})` : "no segment yet",
      replica.tail_vectors > 0 && `, ${number(replica.tail_vectors)} in the tail`,
      remote > 0 && `, ${count(remote, "segment")} to fetch`));
}
