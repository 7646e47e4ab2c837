// One answer on its way: asks the server, writes what comes into the message, and tries again when the server is busy.

import { streamChat } from "./api.js";
import { dialogue } from "./store.js";

const MOST_TRIES = 5;
const LONGEST_WAIT = 120;
const AGAIN_TEMPERATURE = 0.8;

/**
 * A running answer. `message` is the assistant's message it fills: its `state` goes from "waiting" over "writing" to
 * "done", "stopped", "failed" or "cut" (the page closed). `before` are the messages
 * with the answer that the question has already, if it has one. `changed` is called after every step.
 */
export class Answer {
  constructor({ conversation, message, model, key, before, changed }) {
    Object.assign(this, { conversation, message, model, key, before, changed });
    this.controller = new AbortController();
    // The question as it stood when it was asked: the conversation may be edited meanwhile.
    this.messages = dialogue(conversation);
  }

  /** Ends it here; what came stays. */
  stop() {
    this.controller.abort();
  }

  /** Ends it because the page closes. */
  leave() {
    this.left = true;
    this.message.state = "cut";
    this.stop();
  }

  /** Resolves when the answer has ended, in whatever way; never rejects. */
  async run() {
    const { message } = this;
    try {
      for (let tries = 1; !(await this.attempt(tries)); tries += 1);
      message.state = "done";
    } catch (error) {
      if (this.controller.signal.aborted) message.state = this.left ? "cut" : "stopped";
      else {
        message.state = "failed";
        message.error = { text: error.message, status: error.status ?? 0, code: error.code ?? null };
      }
    }
    delete message.wait;
    this.changed();
  }

  /** Whether the answer came; false when the server was busy and it is time to try again. */
  async attempt(tries) {
    try {
      await this.stream();
      return true;
    } catch (error) {
      const busy = error.status === 429 || (error.status === 503 && error.retryAfter !== null);
      if (!busy || tries >= MOST_TRIES || this.message.content) throw error;
      await this.wait(Math.min(LONGEST_WAIT, Math.ceil(error.retryAfter ?? 2 ** tries)));
      return false;
    }
  }

  async stream() {
    const { message } = this;
    const start = performance.now();
    const seconds = () => (performance.now() - start) / 1000;
    for await (const event of streamChat(this.body(), { key: this.key, signal: this.controller.signal })) {
      if (event.text) {
        message.timing ??= { first: seconds() };
        message.content += event.text;
        message.timing.last = seconds();
        message.state = "writing";
      }
      if (event.omitted) message.omitted = event.omitted;
      if (event.finish) message.finish = event.finish;
      if (event.usage) message.usage = event.usage;
      this.changed();
    }
  }

  body() {
    const { temperature, top_p, max_tokens, seed } = this.conversation;
    const body = { model: this.model, messages: this.messages, truncation: "auto" };
    // Another answer to the same question has to be chosen more freely, or it would be the same one.
    body.temperature = this.before ? Math.max(temperature, AGAIN_TEMPERATURE) : temperature;
    body.top_p = top_p;
    if (max_tokens !== null) body.max_tokens = max_tokens;
    if (seed !== null && !this.before) body.seed = seed;
    if (body.temperature !== temperature) this.message.temperature = body.temperature;
    return body;
  }

  /** Counts the seconds down in the message; throws when it is stopped. */
  async wait(seconds) {
    const { signal } = this.controller;
    for (let left = seconds; left > 0; left -= 1) {
      this.message.wait = left;
      this.changed();
      await new Promise((resolve) => {
        const timer = setTimeout(resolve, 1000);
        signal.addEventListener("abort", () => (clearTimeout(timer), resolve()), { once: true });
      });
      signal.throwIfAborted();
    }
    delete this.message.wait;
    this.changed();
  }
}

/** A new, empty answer of a model. */
export function emptyAnswer(model) {
  return { role: "assistant", content: "", model, state: "waiting" };
}
