// Talks to the server: the models it has, and answers as they are written.

/** What the server (or the way to it) said instead of an answer. */
export class ApiError extends Error {
  constructor(message, { status = 0, code = null, retryAfter = null } = {}) {
    super(message);
    this.name = "ApiError";
    this.status = status;
    this.code = code;
    this.retryAfter = retryAfter;
  }
}

const UNREACHABLE = "The server cannot be reached. Is it still running?";

/** The server's models: `{ id, context_length?, description? }` each. Throws `ApiError`. */
export async function listModels(key) {
  const response = await request("/v1/models", { headers: authorization(key) });
  const body = await response.json().catch(() => null);
  if (!Array.isArray(body?.data)) throw new ApiError("The server's list of models could not be read.");
  return body.data;
}

/**
 * Asks for an answer and yields its events as they come: `{ omitted }` (messages that had no room), `{ text }`,
 * `{ finish }` and `{ usage }`. Throws `ApiError`;
 * when the signal stops it, the `AbortError` of the browser.
 */
export async function* streamChat(body, { key, signal }) {
  const response = await request("/v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json", Accept: "text/event-stream", ...authorization(key) },
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
    signal,
  });
  const omitted = Number(response.headers.get("X-Omitted-Messages"));
  if (omitted > 0) yield { omitted };
  let finished = false;
  for await (const data of events(response, signal)) {
    if (data === "[DONE]") return;
    const event = readEvent(data);
    if (event.error)
      throw new ApiError(event.error.message ?? "The server reported an error.", { code: event.error.code });
    const choice = event.choices?.[0];
    if (choice?.delta?.content) yield { text: choice.delta.content };
    if (choice?.finish_reason) {
      finished = true;
      yield { finish: choice.finish_reason };
    }
    if (event.usage) yield { usage: event.usage };
  }
  if (!finished) throw new ApiError("The connection ended before the answer did.", { code: "cut" });
}

function readEvent(data) {
  try {
    return JSON.parse(data) ?? {};
  } catch {
    throw new ApiError("The server sent something that could not be read.");
  }
}

function authorization(key) {
  return key ? { Authorization: `Bearer ${key}` } : {};
}

async function request(path, options) {
  let response;
  try {
    response = await fetch(path, { cache: "no-store", redirect: "error", ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(UNREACHABLE, { code: "unreachable" });
  }
  if (response.ok) return response;
  const body = await response.json().catch(() => null);
  const message = body?.error?.message ?? `The server answered with status ${response.status}.`;
  const wait = Number.parseFloat(response.headers.get("Retry-After"));
  throw new ApiError(message, {
    status: response.status,
    code: body?.error?.code ?? null,
    retryAfter: Number.isFinite(wait) ? Math.max(0, wait) : null,
  });
}

async function* events(response, signal) {
  const decoder = new EventDecoder();
  const reader = response.body.getReader();
  try {
    for (;;) {
      let part;
      try {
        part = await reader.read();
      } catch (error) {
        if (signal?.aborted) throw error;
        throw new ApiError("The connection to the server broke off.", { code: "cut" });
      }
      if (part.done) return;
      yield* decoder.decode(part.value);
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** Server-sent events out of bytes, wherever the network cuts them: the data of each event. */
export class EventDecoder {
  constructor() {
    this.decoder = new TextDecoder();
    this.rest = "";
    this.data = [];
  }

  /** The data of the events that these bytes complete. */
  decode(bytes) {
    this.rest += this.decoder.decode(bytes, { stream: true });
    const complete = [];
    // A carriage return at the very end may be half of a line end: it waits for what follows.
    const lines = this.rest.split(/\r\n|\n|\r(?!$)/);
    this.rest = lines.pop();
    for (const line of lines) {
      if (line === "") {
        if (this.data.length > 0) complete.push(this.data.join("\n"));
        this.data = [];
      } else if (line.startsWith("data:")) this.data.push(line.slice(line[5] === " " ? 6 : 5));
    }
    return complete;
  }
}
