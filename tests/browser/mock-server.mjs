// A server that speaks the API with scripted answers, so that the page can be tested without a model and in weather
// that a real server seldom makes. What the last message says decides what happens:
//
//   "markdown", "code", "table", "inject"   an answer of that kind          "long"     many paragraphs
//   "slow"       a word every 40 ms, without end                            "silent"   nothing, for a long time
//   "busy N"     429 for N times, then an answer                            "cut"      the connection breaks off
//   "midway"     an error within the stream                                 "refuse"   400 with a reason
//   "length"     stops at the most tokens                                   "split"    every byte on its own
//
// Anything else is answered with a sentence that repeats it.

import { readFile } from "node:fs/promises";
import { createServer } from "node:http";
import { extname, join, normalize } from "node:path";
import { fileURLToPath } from "node:url";

const STUDIO = fileURLToPath(new URL("../../crates/serve/studio/", import.meta.url));
const POLICY =
  "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self';" +
  " form-action 'none'; base-uri 'none'; frame-ancestors 'none'";
const TYPES = { ".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml" };

export const SAMPLES = {
  markdown: `# How bread rises

Yeast **eats sugar** and breathes out *carbon dioxide*. The dough traps it, because \`gluten\` is elastic. Two things decide how fast:

1. **Warmth.** Near 26 °C is best:
   - below 10 °C it almost sleeps,
   - above 45 °C it dies.
2. **Time.** A slow rise tastes better.
   1. Mix in the evening.
   2. Bake in the morning.

> Patience is an ingredient.
>
> — a baker

- [x] flour, water, salt
- [ ] a hot oven

---

Read more at https://example.org/bread, or [write to a baker](mailto:baker@example.org). ~~No sugar needed.~~`,
  code: `Here is a function that counts words, in Python:

\`\`\`python
from collections import Counter

def most_common(text: str, count: int = 3) -> list[tuple[str, int]]:
    """The words that occur most often,
    whatever their case."""
    words = text.lower().split()  # naive, but enough here
    return Counter(words).most_common(count)

print(most_common("the cat and the hat and the bat", 2))
\`\`\`

and the same in Rust:

\`\`\`rust
use std::collections::HashMap;

/// How often each word occurs.
fn counts<'a>(text: &'a str) -> HashMap<&'a str, usize> {
    let mut counts = HashMap::new();
    for word in text.split_whitespace() {
        *counts.entry(word).or_insert(0) += 1; // 0 for the first time
    }
    counts
}
\`\`\`

Run it with \`cargo run --release\`.`,
  table: `The three models, side by side:

| Task          | Base | Command | Dialogue |
|:--------------|-----:|--------:|---------:|
| count         |  0 % |   100 % |     90 % |
| extract-date  |  0 % |   100 % |    100 % |
| opposite      |  0 % |    80 % |     20 % |
| recall-number |  0 % |     0 % | **100 %** |

The dialogue model remembers; the command model follows.`,
  inject: `Before <img src=x onerror="window.hacked = 1"> and <script>window.hacked = 2</script>

[a script](javascript:window.hacked=3) and [data](data:text/html,<script>window.hacked=4</script>) and
![a picture](https://remote.example/pixel.png) and ![bad](javascript:window.hacked=5) and
[fine](https://example.org/ "a title") <iframe src="https://remote.example"></iframe>

\`\`\`html"><img src=x onerror=window.hacked=6>
<b onclick="window.hacked = 7">code</b>
\`\`\``,
  long: Array.from(
    { length: 40 },
    (_, index) =>
      `## Part ${index + 1}\n\nThis is paragraph ${index + 1}, with **some** emphasis and enough words that it wraps over more than` +
      " one line on every screen that somebody may hold in a hand or put on a desk.\n\n- one\n- two\n- three",
  ).join("\n\n"),
};

/** Starts the server on a free port of the loopback interface. `options.key` makes it ask for that API key. */
export async function startMock({
  key = null,
  models = ["demo-dialogue", "demo-command"],
  description,
} = {}) {
  const mock = { requests: [], aborted: 0, busy: new Map(), key, models, description };
  const server = createServer((request, response) => {
    handle(mock, request, response).catch(() => response.destroy());
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  mock.url = `http://127.0.0.1:${server.address().port}`;
  mock.stop = () =>
    new Promise((resolve) => {
      server.close(resolve);
      server.closeAllConnections();
    });
  return mock;
}

async function handle(mock, request, response) {
  const path = new URL(request.url, "http://localhost").pathname;
  response.setHeader("Content-Security-Policy", POLICY);
  response.setHeader("X-Content-Type-Options", "nosniff");
  if (path === "/ready") return response.end("ready\n");
  if (path === "/docs") return response.end("API reference\n");
  if (path.startsWith("/v1/")) {
    if (mock.key && request.headers.authorization !== `Bearer ${mock.key}`) {
      return fail(response, 401, "This server needs an API key.", { code: "invalid_api_key" });
    }
    if (path === "/v1/models")
      return json(response, 200, { object: "list", data: mock.models.map((id) => model(mock, id)) });
    if (path === "/v1/chat/completions") return chat(mock, request, response);
  }
  const file = path === "/" ? "index.html" : path.startsWith("/studio/") ? path.slice(8) : null;
  if (!file || normalize(file) !== file || !(extname(file) in TYPES))
    return fail(response, 404, "Not found.");
  const content = await readFile(join(STUDIO, file)).catch(() => null);
  if (content === null) return fail(response, 404, "Not found.");
  response.setHeader("Content-Type", `${TYPES[extname(file)]}; charset=utf-8`);
  response.end(content);
}

function model(mock, id) {
  const description = mock.description ?? "dialogue model, 0.7 M parameters";
  return {
    id,
    object: "model",
    created: 1_700_000_000,
    owned_by: "strata",
    context_length: 512,
    description,
  };
}

function json(response, status, body) {
  response.writeHead(status, { "Content-Type": "application/json" });
  response.end(JSON.stringify(body));
}

function fail(response, status, message, { code = null, headers = {} } = {}) {
  for (const [name, value] of Object.entries(headers)) response.setHeader(name, value);
  json(response, status, { error: { message, type: "invalid_request_error", param: null, code } });
}

const sleep = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

async function chat(mock, request, response) {
  const parts = [];
  for await (const part of request) parts.push(part);
  const body = JSON.parse(Buffer.concat(parts).toString("utf8"));
  mock.requests.push(body);
  const said = body.messages.at(-1).content;
  let gone = false;
  response.on("close", () => {
    gone = !response.writableFinished;
    if (gone) mock.aborted += 1;
  });
  if (said === "refuse")
    return fail(response, 400, "The conversation has 612 tokens and the model reads 512: start a new one.");
  const busy = /^busy (\d+)$/.exec(said);
  if (busy) {
    const count = (mock.busy.get(said) ?? 0) + 1;
    mock.busy.set(said, count);
    if (count <= Number(busy[1]))
      return fail(response, 429, "All places are taken.", { headers: { "Retry-After": "2" } });
  }
  response.writeHead(200, { "Content-Type": "text/event-stream", "Cache-Control": "no-store" });
  const id = `chatcmpl-${mock.requests.length}`;
  const event = (value) => `data: ${JSON.stringify(value)}\n\n`;
  const chunk = (delta, reason = null) =>
    event({
      id,
      object: "chat.completion.chunk",
      model: body.model,
      choices: [{ index: 0, delta, finish_reason: reason }],
    });
  response.write(chunk({ role: "assistant", content: "" }));
  if (said === "silent") return void (await until(() => gone));
  const tokens = (
    SAMPLES[said] ??
    SAMPLES[said.split(" ")[0]] ??
    `You said: ${said}. That is all there is to say.`
  ).match(/\s*\S+/g);
  let sent = 0;
  if (said.startsWith("slow")) {
    for (; !gone; sent += 1) {
      response.write(chunk({ content: `word${sent} ` }));
      await sleep(40);
    }
    return;
  }
  if (said === "split") {
    const bytes = Buffer.from(
      chunk({ content: "Grüße 🌊 " }) +
        chunk({ content: "über alles" }) +
        chunk({}, "stop") +
        "data: [DONE]\n\n",
    );
    for (const byte of bytes) {
      response.write(Buffer.from([byte]));
      if (byte > 127) await sleep(3);
    }
    return response.end();
  }
  for (const token of tokens) {
    if (gone) return;
    response.write(chunk({ content: token }));
    sent += 1;
    if (sent === 4 && said === "cut") {
      await sleep(50);
      return response.destroy();
    }
    if (sent === 4 && said === "midway") {
      response.write(
        event({
          error: { message: "The model's worker stopped.", type: "server_error", param: null, code: null },
        }),
      );
      return response.end();
    }
    if (mock.pace !== 0) await sleep(mock.pace ?? 12);
  }
  response.write(chunk({}, said === "length" ? "length" : "stop"));
  const prompt = Math.round(JSON.stringify(body.messages).length / 4);
  response.write(
    event({
      id,
      choices: [],
      usage: {
        prompt_tokens: prompt,
        completion_tokens: sent,
        total_tokens: prompt + sent,
        prompt_tokens_details: { cached_tokens: 0 },
      },
    }),
  );
  response.end("data: [DONE]\n\n");
}

/** Waits until `condition` holds, half a minute at most. */
export async function until(condition) {
  for (let tries = 0; tries < 600 && !condition(); tries += 1) await sleep(50);
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const mock = await startMock({ key: process.env.STRATA_KEY ?? null });
  console.log(mock.url);
}
