// The chat page: puts the parts together and keeps them in step.

import { Answer, emptyAnswer } from "./answer.js";
import { listModels } from "./api.js";
import { fitHeight, isComposing } from "./dom.js";
import { KeyDialog } from "./key-dialog.js";
import { announce, notify } from "./notices.js";
import { Settings } from "./settings.js";
import { Shell } from "./shell.js";
import { Sidebar } from "./sidebar.js";
import { DEFAULTS, exportLine, Store } from "./store.js";
import { Thread } from "./thread.js";
import { showWelcome } from "./welcome.js";

const SAVE_EVERY = 1000;
/** After so many milliseconds without a word nobody writes an answer any more: timers of a hidden page may run once a minute. */
const GIVEN_UP = 70_000;
const LOOK_AGAIN = 4000;
const get = (id) => document.getElementById(id);
const input = get("input");
const picker = get("model");

const store = new Store({ problem: (what) => queueMicrotask(() => tellStorageProblem(what)) });
/** The answers on their way, by the id of their conversation. */
const answers = new Map();
/** What was typed and not sent, by the id of the conversation, or "new". */
const drafts = store.drafts();
/** What the page knows of the server: "looking", "ready", "empty", "locked" or "away". */
const server = { state: "looking", models: [], error: null };
/** The conversation that has not begun. */
let blank = store.draft();
let conversation = blank;
/** What closes the notice with the way back, by the id of the conversation. */
const undos = new Map();

const shell = new Shell({ store });
const keyDialog = new KeyDialog({ store });
const thread = new Thread({
  list: get("messages"),
  scroller: get("scroller"),
  toEnd: get("to-end"),
  actions: { retry, edit, stop, enterKey, closed: catchUp },
});
const sidebar = new Sidebar({
  store,
  actions: { rename, exportFile, remove },
  current: () => conversation,
  isRunning: ({ id }) => answers.has(id),
});
const settings = new Settings({
  form: get("settings-form"),
  changed: (changed) => {
    const latest = store.conversations.get(changed.id);
    // One that has not begun is not kept, nor one that was deleted meanwhile.
    if (!latest) return;
    if (latest !== changed) {
      for (const name of Object.keys(DEFAULTS)) latest[name] = changed[name];
      if (latest === conversation && !settings.isInUse()) settings.show(latest);
    }
    store.save(latest, { touch: false });
  },
  keepAsDefaults: (defaults) => {
    store.preferences.defaults = defaults;
    store.savePreferences();
    if (blank !== conversation) blank = store.draft();
    notify("New conversations will start with these settings.");
  },
  wasReset: (which, before) =>
    notify("The settings are as they come, and the system prompt is empty.", {
      label: "Undo",
      run: () => settings.set(which, before),
    }),
});

// ---- Conversations ----

/** Under what the text for a conversation is kept while it is not sent. */
const draftOf = ({ id, messages }) => (messages.length > 0 ? id : "new");

/** The conversation that has not begun; always the same, so that what was set for it stays. */
function fresh() {
  if (blank.messages.length > 0) blank = store.draft();
  return blank;
}

/** Whether another tab is writing an answer in this conversation. */
function isWrittenElsewhere(which) {
  const { writing, updated } = store.conversations.get(which.id) ?? which;
  return Boolean(writing) && !answers.has(which.id) && Date.now() - updated < GIVEN_UP;
}

/** Takes over what another tab made of the open conversation, but not while a message is being changed, which would be lost. */
function catchUp({ always = false } = {}) {
  const latest = store.conversations.get(conversation.id);
  if (!latest || latest === conversation || (thread.isEditing() && !always)) return;
  conversation = latest;
  if (settings.isInUse()) settings.conversation = latest;
  else settings.show(latest);
  markCut(latest);
  show();
}

/** Answers that nobody writes any more: the page closed meanwhile. */
function markCut(which) {
  if (answers.has(which.id) || isWrittenElsewhere(which)) return;
  for (const message of which.messages) {
    if (message.state === "waiting" || message.state === "writing") message.state = "cut";
  }
}

/** Should the other tab go without a word, that is seen later. */
function watch({ id }, wait = GIVEN_UP) {
  clearTimeout(watch.timer);
  watch.timer = setTimeout(() => {
    if (id !== conversation.id || answers.has(id)) return;
    if (thread.isEditing() || settings.isInUse()) watch({ id }, LOOK_AGAIN);
    else open(store.conversations.get(id) ?? conversation);
  }, wait);
}

/** Whether the open conversation can be asked something now; else says why not. */
function canAsk() {
  if (answers.has(conversation.id)) return false;
  if (isWrittenElsewhere(conversation))
    notify("Another tab is writing an answer in this conversation. Go on when it is there.");
  else if (!picker.value) notify("There is no model to ask at the moment.");
  else {
    catchUp({ always: true });
    return true;
  }
  return false;
}

function open(next) {
  drafts.set(draftOf(conversation), input.value);
  conversation = next;
  clearTimeout(watch.timer);
  if (isWrittenElsewhere(next)) watch(next);
  markCut(next);
  input.value = drafts.get(draftOf(next)) ?? "";
  fitHeight(input);
  thread.show([]);
  settings.show(next);
  chooseModel(next.model);
  show();
  thread.scrollToEnd();
}

function openFromAddress() {
  const id = /^#c=(\w+)$/.exec(location.hash)?.[1];
  const next = store.conversations.get(id);
  if (next) {
    if (next.id !== conversation.id || thread.views.length === 0) open(next);
  } else if (conversation.messages.length > 0) open(fresh());
  else open(conversation);
  shell.closeDrawers();
}

function startNew() {
  if (location.hash) history.pushState(null, "", location.pathname);
  if (conversation.messages.length > 0) open(fresh());
  sidebar.clearSearch();
  shell.closeDrawers();
  focusInput();
}

function rename({ id }, title) {
  const which = store.conversations.get(id);
  if (!which) return;
  which.title = title;
  store.save(which, { touch: false });
  catchUp();
  show();
}

function remove({ id }) {
  const which = store.conversations.get(id);
  if (!which) return;
  closeUndo(which);
  dropAnswer(which);
  store.remove(which);
  const here = which.id === conversation.id;
  if (here) startNew();
  sidebar.show();
  const undo = () => {
    markCut(which);
    store.save(which, { touch: false });
    if (here && conversation.messages.length === 0) location.hash = `c=${which.id}`;
    sidebar.show();
  };
  notify(`Deleted “${shortened(which.title, 40)}”.`, { label: "Undo", run: undo });
}

function exportFile(which) {
  const line = exportLine(which);
  if (!line) return notify("There is no answer to export yet.");
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([line], { type: "application/jsonl" }));
  link.download = `${
    which.title
      .toLowerCase()
      .replace(/[^\p{L}\p{N}]+/gu, "-")
      .replace(/^-|-$/g, "")
      .slice(0, 50) || "conversation"
  }.jsonl`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

/** Puts other messages in the place of the present ones, with a way back. */
function replaceMessages(messages, notice) {
  const where = conversation;
  const running = answers.get(where.id);
  const before = running?.before && !running.message.content ? running.before : where.messages;
  dropAnswer(where);
  where.messages = messages;
  const undo = () => {
    dropAnswer(where);
    where.messages = before;
    store.save(where);
    if (where === conversation) open(where);
  };
  closeUndo(where);
  if (notice) undos.set(where.id, notify(notice, { label: "Undo", run: undo }));
}

/** Ends the answer that is on its way, and forgets it. */
function dropAnswer(which) {
  answers.get(which.id)?.stop();
  answers.delete(which.id);
  which.writing = false;
}

/** Takes the way back away, where it would lose what came after. */
function closeUndo({ id }) {
  undos.get(id)?.();
  undos.delete(id);
}

// ---- Questions and answers ----

/** Asks a question; says whether that could be. */
function send(text) {
  if (!canAsk()) return false;
  closeUndo(conversation);
  drafts.delete(draftOf(conversation));
  conversation.messages.push({ role: "user", content: text });
  if (!conversation.title) conversation.title = shortened(text.replace(/\s+/g, " "), 60);
  if (location.hash !== `#c=${conversation.id}`) history.pushState(null, "", `#c=${conversation.id}`);
  ask();
  return true;
}

/** Asks for an answer to the messages as they stand; where none comes, `before` are put back. */
function ask({ before = null } = {}) {
  const where = conversation;
  const model = picker.value;
  if (!model) return;
  const message = emptyAnswer(model);
  where.model = model;
  where.messages.push(message);
  const changed = () => where === conversation && thread.changed(message);
  // Other tabs see by this that it is being written.
  const saving = setInterval(() => answers.get(where.id) === answer && keep(answer), SAVE_EVERY);
  const answer = new Answer({ conversation: where, message, model, key: store.key, before, changed });
  answers.set(where.id, answer);
  keep(answer);
  announce("Waiting for the answer");
  show();
  thread.scrollToEnd();
  answer.run().then(() => {
    clearInterval(saving);
    ended(answer);
  });
}

/** Writes down a conversation that is being answered. Until something of another answer has come, the one before counts. */
function keep({ conversation: where, message, before, left }) {
  const { messages } = where;
  where.writing = !left;
  if (before && !message.content) where.messages = before;
  store.save(where);
  where.messages = messages;
}

function ended(answer) {
  const { conversation: where, message, before } = answer;
  if (answers.get(where.id) === answer) answers.delete(where.id);
  const isLast = where.messages.at(-1) === message;
  if (before && isLast && !message.content && message.state !== "done") {
    where.messages = before;
    closeUndo(where);
    if (message.state === "failed") notify(`No other answer came, so the one before stays. ${message.error.text}`);
  }
  // It may have been deleted or replaced meanwhile.
  if (store.conversations.get(where.id) === where && isLast && !answers.has(where.id)) {
    where.writing = false;
    store.save(where);
  }
  if (where === conversation && where.messages.includes(message)) announce(spoken(message));
  if (message.error?.status === 401) enterKey();
  if (message.error?.status === 404) look();
  show();
}

function spoken({ state, content, error }) {
  if (state === "failed") return `${error.text}`;
  if (state === "stopped") return "Stopped";
  return `Answer: ${shortened(content, 600)}`;
}

function stop() {
  answers.get(conversation.id)?.stop();
}

function retry() {
  if (!canAsk()) return;
  const before = conversation.messages;
  const last = before.at(-1);
  const messages = last?.role === "assistant" ? conversation.messages.slice(0, -1) : conversation.messages;
  replaceMessages(messages, last?.content ? "The answer is being written anew." : null);
  ask(last?.content ? { before } : {});
  focusInput();
}

function edit(index, text) {
  // Also while an answer is on its way: that one is dropped.
  if (answers.has(conversation.id) ? !picker.value : !canAsk()) return;
  const follows = conversation.messages.length > index + 1;
  replaceMessages(
    [...conversation.messages.slice(0, index), { role: "user", content: text }],
    follows ? "What followed was dropped." : null,
  );
  ask();
  focusInput();
}

async function enterKey() {
  while (await keyDialog.ask()) {
    await look();
    if (server.state === "locked") continue;
    if (conversation.messages.at(-1)?.error?.status === 401) retry();
    return;
  }
}

// ---- The server ----

/** Asks the server for its models, and again a little later while it has none or is away. */
async function look() {
  clearTimeout(look.timer);
  try {
    server.models = await listModels(store.key);
    server.state = server.models.length > 0 ? "ready" : "empty";
  } catch (error) {
    server.state = error.status === 401 ? "locked" : "away";
    server.error = error.message;
  }
  if (server.state === "ready") fillPicker();
  else emptyPicker();
  // Where a key is missing, only the person can help.
  if (server.state === "empty" || server.state === "away") look.timer = setTimeout(look, LOOK_AGAIN);
  if (server.state === "locked" && !look.asked) {
    look.asked = true;
    enterKey();
  }
  get("key-in-use").hidden = !store.key;
  show();
}

function fillPicker() {
  picker.replaceChildren(
    ...server.models.map(({ id, description }) => {
      const option = new Option(id, id);
      if (description) option.title = description;
      return option;
    }),
  );
  picker.disabled = false;
  chooseModel(conversation.model ?? store.preferences.model);
}

function emptyPicker() {
  picker.replaceChildren(
    new Option({ empty: "No model yet", locked: "API key needed", away: "No server" }[server.state], ""),
  );
  picker.disabled = true;
}

function chooseModel(id) {
  const wanted = [id, store.preferences.model].find((name) =>
    server.models.some((model) => model.id === name),
  );
  if (wanted) picker.value = wanted;
}

// ---- What is on the page ----

function show() {
  const { messages, title } = conversation;
  const answering = answers.has(conversation.id);
  thread.show(messages);
  sidebar.show();
  get("welcome").hidden = messages.length > 0;
  if (messages.length === 0) {
    const model = server.models.find(({ id }) => id === picker.value);
    showWelcome(get("welcome"), { server, model, send, look, enterKey });
  }
  get("heading").textContent = title || "New conversation";
  document.title = title ? `${title} · Strata` : "Strata";
  // A focused button that vanishes would drop the focus to the page's start.
  const focused = document.activeElement === get("stop") || document.activeElement === get("send");
  get("stop").hidden = !answering;
  get("send").hidden = answering;
  if (focused) focusInput();
  showSendable();
  showRoomLeft();
}

/** Where the keyboard is on the screen it would cover the answer: there the focus comes when the person asks for it. */
function focusInput() {
  if (matchMedia("(pointer: fine)").matches) input.focus();
}

function showSendable() {
  get("send").disabled = !input.value.trim() || server.models.length === 0;
}

/** Says how full the model's context is, once it matters. */
function showRoomLeft() {
  const usage = conversation.messages.findLast(({ usage }) => usage)?.usage;
  const most = server.models.find(({ id }) => id === picker.value)?.context_length;
  const place = get("room-left");
  const near = usage && most && usage.total_tokens > most / 2;
  place.textContent = near ? `${usage.total_tokens} of ${most} tokens` : "";
  place.title = near ? "How much of what this model can read at once the conversation takes" : "";
  place.classList.toggle("mark", Boolean(near) && usage.total_tokens > most * 0.85);
}

function tellStorageProblem(what) {
  const text =
    what === "full"
      ? "This browser's storage is full: new messages are lost when the page closes. Deleting conversations makes room."
      : "This browser keeps nothing for this page: conversations are lost when it closes.";
  get("storage-note").textContent = text;
  get("storage-note").classList.add("mark");
  notify(text);
}

function shortened(text, most) {
  const characters = [...text];
  return characters.length > most
    ? `${characters
        .slice(0, most - 1)
        .join("")
        .trimEnd()}…`
    : text;
}

// ---- Events ----

get("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = input.value.trim();
  if (!text || !send(text)) return;
  input.value = "";
  fitHeight(input);
  showSendable();
});
input.addEventListener("input", () => {
  fitHeight(input);
  showSendable();
});
input.addEventListener("keydown", (event) => {
  if (isComposing(event)) return;
  if (event.key === "Enter" && !event.shiftKey) {
    event.preventDefault();
    get("composer").requestSubmit();
  } else if (event.key === "ArrowUp" && !input.value && thread.editLast()) event.preventDefault();
});
picker.addEventListener("change", () => {
  store.preferences.model = picker.value;
  store.savePreferences();
  const latest = store.conversations.get(conversation.id);
  conversation.model = picker.value;
  if (latest) {
    latest.model = picker.value;
    store.save(latest, { touch: false });
  }
  show();
});
get("stop").addEventListener("click", stop);
get("new").addEventListener("click", startNew);
get("new-in-bar").addEventListener("click", startNew);
get("forget-key").addEventListener("click", () => {
  store.forgetKey();
  get("key-in-use").hidden = true;
  notify("The key is forgotten.");
});
document.addEventListener("keydown", (event) => {
  if (isComposing(event)) return;
  if (document.querySelector(":popover-open, dialog[open]")) return;
  const command = (event.ctrlKey || event.metaKey) && !event.altKey && !event.shiftKey;
  if (command && event.key.toLowerCase() === "k") {
    event.preventDefault();
    startNew();
  } else if (event.key === "Escape" && !shell.closeTopmost()) stop();
});
addEventListener("hashchange", openFromAddress);
addEventListener("popstate", openFromAddress);
addEventListener("storage", (event) => {
  const id = Store.changedBy(event);
  if (!id) return;
  // What is kept now, which may be newer than the event.
  const text = store.stored(id);
  if (text === null) {
    dropAnswer({ id });
  }
  store.follow(id, text, answers.get(id)?.conversation);
  // The way back would lose what the other tab did.
  if (!answers.has(id)) closeUndo({ id });
  if (id !== conversation.id) return sidebar.show();
  if (!answers.has(id)) return follow(store.conversations.get(id));
  if (!settings.isInUse()) settings.show(conversation);
  show();
});

/** Shows the open conversation as another tab left it, and keeps what the person is writing here. */
function follow(next) {
  clearTimeout(watch.timer);
  if (!next) {
    const text = input.value;
    open(fresh());
    input.value ||= text;
    fitHeight(input);
    showSendable();
    return notify("This conversation was deleted in another tab.");
  }
  if (settings.isInUse()) Object.assign(next, settings.values());
  // A message that is being changed stays; what came meanwhile is taken over when that is done.
  if (thread.isEditing()) sidebar.show();
  else if (settings.isInUse()) catchUp();
  else {
    const scroller = get("scroller");
    const { pinned } = thread;
    const place = scroller.scrollTop;
    open(next);
    if (!pinned) {
      thread.unpin();
      scroller.scrollTop = place;
    }
  }
  if (isWrittenElsewhere(next)) watch(next);
}
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  input.focus();
});
addEventListener("pagehide", () => {
  drafts.set(draftOf(conversation), input.value);
  store.saveDrafts(drafts);
  for (const answer of answers.values()) {
    answer.leave();
    keep(answer);
  }
});
// A page that comes back as it was left missed what other tabs did.
addEventListener("pageshow", (event) => {
  if (!event.persisted) return;
  for (const id of undos.keys()) closeUndo({ id });
  store.load();
  if (!thread.isEditing()) open(store.conversations.get(conversation.id) ?? fresh());
});
document.addEventListener("visibilitychange", () => {
  if (!document.hidden && server.state !== "ready" && server.state !== "locked") look();
});

get("new-key").textContent = /Mac|iPhone|iPad/.test(navigator.platform) ? "⌘K" : "Ctrl K";
input.value = drafts.get("new") ?? "";
openFromAddress();
look();
