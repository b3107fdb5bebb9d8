// The router's HTTP, as this page uses it: JSON in and out, errors with the message that the API gives.

/** A whole number beyond what JavaScript's numbers hold: kept as it is written, so that an id stays the id. */
export class Exact {
  constructor(source) {
    this.source = source;
  }

  toString() {
    return this.source;
  }

  toJSON() {
    // Browsers without it are told the nearest number that they have.
    return JSON.rawJSON ? JSON.rawJSON(this.source) : Number(this.source);
  }
}

/** Reads JSON, and keeps large whole numbers as `Exact` where the browser says how they were written. */
export function parse(text) {
  return JSON.parse(text, (_key, value, context) => {
    const large = typeof value === "number" && Number.isInteger(value) && !Number.isSafeInteger(value);
    return large && context && /^-?\d+$/.test(context.source) ? new Exact(context.source) : value;
  });
}

/** An answer that is an error, with its status; 0 where there was no answer. */
export class ApiError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** What an error's body says: Qdrant's form is `{status: {error}}`, OpenAI's `{error: {message}}`. */
function said(text, status) {
  try {
    const body = JSON.parse(text);
    return body?.status?.error ?? body?.error?.message ?? text;
  } catch {
    return text || `the router answered ${status} and said nothing`;
  }
}

async function ask(method, path, body, signal) {
  const options = { method, signal, headers: {}, redirect: "error", credentials: "same-origin" };
  if (body !== undefined) {
    options.headers["content-type"] = "application/json";
    options.body = JSON.stringify(body);
  }
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, "The router does not answer. Is it running, and is there a way to it?");
  }
  if (!response.ok) throw new ApiError(response.status, said(await response.text(), response.status));
  return response;
}

/** Gets JSON. */
export async function get(path, signal) {
  return parse(await (await ask("GET", path, undefined, signal)).text());
}

/** Posts JSON and gets some. */
export async function post(path, body, signal) {
  return parse(await (await ask("POST", path, body, signal)).text());
}

/** Of a collection: the path that its name stands in. */
export function collectionPath(name, rest = "") {
  return `/collections/${encodeURIComponent(name)}${rest}`;
}

/**
 * Posts JSON, and yields the data of each event of the answer's stream up to `[DONE]`. Fails where the stream says so or ends
 * without it.
 */
export async function* events(path, body, signal) {
  const response = await ask("POST", path, body, signal);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) break;
      rest += value;
      const parts = rest.split(/\r?\n\r?\n/);
      rest = parts.pop();
      for (const part of parts) {
        const lines = part.split(/\r?\n/).filter((line) => line.startsWith("data:"));
        const data = lines.map((line) => line.slice(5).replace(/^ /, "")).join("\n");
        if (data === "[DONE]") return;
        if (data === "") continue;
        const event = parse(data);
        if (event.error) throw new ApiError(0, event.error.message);
        yield event;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
  throw new ApiError(0, "The answer broke off before its end.");
}
