// Conversations and preferences, kept in this browser and nowhere else. Memory holds the truth; the browser's storage
// is written when it can be: where it is full or switched off, the page goes on and says so.

const CONVERSATION = "strata.conversation.";
const PREFERENCES = "strata.preferences";
const KEY = "strata.key";
const DRAFTS = "strata.drafts";

/** How a new conversation starts unless the person chose otherwise; `null` leaves the choice to the server. */
export const DEFAULTS = { system: "", temperature: 0, top_p: 1, max_tokens: null, seed: null };

/** A name that no other conversation has. (`crypto.randomUUID` is missing on pages without TLS.) */
export function newId() {
  return [...crypto.getRandomValues(new Uint8Array(12))]
    .map((byte) => byte.toString(16).padStart(2, "0"))
    .join("");
}

/** Everything that outlives a reload. `problem` is called once with "full" or "blocked" when it cannot. */
export class Store {
  constructor({ problem }) {
    this.problem = problem;
    this.told = false;
    this.conversations = new Map();
    this.preferences = { model: null, sidebar: true, defaults: { ...DEFAULTS } };
    this.load();
  }

  load() {
    const stored = parsed(this.read(localStorageOrNull, PREFERENCES));
    if (stored) Object.assign(this.preferences, stored, { defaults: { ...DEFAULTS, ...stored.defaults } });
    const storage = localStorageOrNull();
    if (!storage) return this.tell("blocked");
    this.conversations.clear();
    for (let index = 0; index < storage.length; index += 1) {
      const name = storage.key(index);
      if (name.startsWith(CONVERSATION)) this.adopt(parsed(storage.getItem(name)));
    }
  }

  adopt(conversation) {
    if (typeof conversation?.id !== "string" || !Array.isArray(conversation.messages)) return;
    this.conversations.set(conversation.id, { ...DEFAULTS, title: "", updated: 0, ...conversation });
  }

  /** Which conversation another tab wrote or removed, or null. */
  static changedBy(event) {
    return event.key?.startsWith(CONVERSATION) ? event.key.slice(CONVERSATION.length) : null;
  }

  /** Takes over what another tab wrote or removed; of a conversation that is being answered here, all but its messages. */
  follow(id, text, running = null) {
    const told = parsed(text);
    if (text === null) this.conversations.delete(id);
    else if (!running) this.adopt(told);
    else
      for (const name of ["title", "model", ...Object.keys(DEFAULTS)]) {
        if (told && name in told) running[name] = told[name];
      }
  }

  /** A conversation as the browser keeps it now, as text, or null. */
  stored(id) {
    return this.read(localStorageOrNull, CONVERSATION + id);
  }

  /** A conversation that is not kept before its first message. */
  draft() {
    const now = Date.now();
    return { id: newId(), title: "", created: now, updated: now, messages: [], ...this.preferences.defaults };
  }

  /** The conversations, newest first; with a query, those that contain it. */
  list(query = "") {
    const wanted = query.trim().toLowerCase();
    const has = (text) => text.toLowerCase().includes(wanted);
    return [...this.conversations.values()]
      .filter(({ title, messages }) => !wanted || has(title) || messages.some(({ content }) => has(content)))
      .sort((a, b) => b.updated - a.updated);
  }

  save(conversation, { touch = true } = {}) {
    if (touch) conversation.updated = Date.now();
    this.conversations.set(conversation.id, conversation);
    this.write(localStorageOrNull, CONVERSATION + conversation.id, JSON.stringify(conversation));
  }

  remove(conversation) {
    this.conversations.delete(conversation.id);
    this.erase(CONVERSATION + conversation.id);
  }

  /** What was typed and not sent, by what it belongs to; kept until the tab closes. */
  drafts() {
    return new Map(Object.entries(parsed(this.read(sessionStorageOrNull, DRAFTS)) ?? {}));
  }

  saveDrafts(drafts) {
    this.write(sessionStorageOrNull, DRAFTS, JSON.stringify(Object.fromEntries(drafts)));
  }

  savePreferences() {
    this.write(localStorageOrNull, PREFERENCES, JSON.stringify(this.preferences));
  }

  get key() {
    return this.memoryKey ?? this.read(sessionStorageOrNull, KEY) ?? this.read(localStorageOrNull, KEY);
  }

  /** Keeps an API key until the tab closes or, when `remember` is true, on this device. */
  setKey(key, remember) {
    this.forgetKey();
    this.memoryKey = key;
    this.write(remember ? localStorageOrNull : sessionStorageOrNull, KEY, key);
  }

  forgetKey() {
    this.memoryKey = null;
    this.erase(KEY);
  }

  read(storage, name) {
    try {
      return storage()?.getItem(name) ?? null;
    } catch {
      return null;
    }
  }

  write(storage, name, value) {
    try {
      const place = storage();
      if (place) place.setItem(name, value);
      else this.tell("blocked");
    } catch {
      this.tell("full");
    }
  }

  erase(name) {
    for (const storage of [localStorageOrNull, sessionStorageOrNull]) {
      try {
        storage()?.removeItem(name);
      } catch {
        // What cannot be reached holds nothing of ours.
      }
    }
  }

  tell(what) {
    if (this.told) return;
    this.told = true;
    this.problem(what);
  }
}

// Merely naming these objects throws where the person switched storage off.
function localStorageOrNull() {
  try {
    return window.localStorage;
  } catch {
    return null;
  }
}

function sessionStorageOrNull() {
  try {
    return window.sessionStorage;
  } catch {
    return null;
  }
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

/**
 * The messages as a model reads them: the system prompt, the turns that were answered, and the last message of the
 * person where it waits for an answer. Turns whose answer never came are left out: roles have to alternate.
 */
export function dialogue({ system, messages }) {
  const turns = system.trim() ? [{ role: "system", content: system }] : [];
  messages.forEach(({ role, content }, index) => {
    const next = messages[index + 1];
    const waits = role === "user" && (!next || (index + 2 === messages.length && next.role === "assistant"));
    if (role === "user" && (waits || next?.content)) turns.push({ role, content });
    if (role === "assistant" && content && index > 0) turns.push({ role, content });
  });
  return turns;
}

/** One line of the dialogues format (`{"messages": […]}`), or null when nothing was answered yet. */
export function exportLine(conversation) {
  const messages = dialogue(conversation);
  if (messages.at(-1)?.role === "user") messages.pop();
  return messages.some(({ role }) => role === "assistant") ? `${JSON.stringify({ messages })}\n` : null;
}
