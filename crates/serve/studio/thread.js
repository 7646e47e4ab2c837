// The messages of a conversation on the page.

import { copyWithButton, element, fitHeight, icon, iconButton, isComposing } from "./dom.js";
import { MarkdownView } from "./markdown-view.js";

const TOO_LONG =
  "Make your message shorter, or the system prompt in the settings, or choose a model that has more room.";

/**
 * The list of messages. `actions` are `retry()`, `edit(index, text)`, `stop()` and `enterKey()`, called when the person
 * asks for them, and `closed()`, when a message is left as it was.
 */
export class Thread {
  constructor({ list, scroller, toEnd, actions }) {
    Object.assign(this, { list, scroller, actions });
    this.views = [];
    this.pinned = true;
    this.toEnd = toEnd;
    this.lastTop = 0;
    toEnd.addEventListener("click", () => this.scrollToEnd());
    scroller.addEventListener("scroll", () => this.scrolled(), { passive: true });
    scroller.addEventListener("wheel", (event) => event.deltaY < 0 && this.unpin(), { passive: true });
    new ResizeObserver(() => this.follow()).observe(list);
    new ResizeObserver(() => this.follow()).observe(scroller);
  }

  /** Shows these messages; views of messages that are shown already stay. */
  show(messages) {
    let same = 0;
    while (same < this.views.length && same < messages.length && this.views[same].message === messages[same])
      same += 1;
    for (const view of this.views.splice(same)) view.element.remove();
    const fresh = messages.slice(same).map((message, index) => {
      const kind = message.role === "user" ? QuestionView : AnswerView;
      const edit = (text) => this.actions.edit(same + index, text);
      return new kind(message, { ...this.actions, edit, change: () => this.editLast() });
    });
    this.list.append(...fresh.map((view) => view.element));
    this.views.push(...fresh);
  }

  /** Brings one message up to date, at the pace at which the screen is drawn. */
  changed(message) {
    const view = this.views.findLast((shown) => shown.message === message);
    if (!view || view.frame) return;
    const update = () => {
      view.frame = null;
      view.update();
      this.follow();
    };
    if (document.hidden) update();
    else view.frame = requestAnimationFrame(update);
  }

  /** Opens the last message of the person for changing. */
  editLast() {
    const view = this.views.findLast((shown) => shown instanceof QuestionView);
    view?.startEditing();
    return Boolean(view);
  }

  /** Whether the person is changing a message. */
  isEditing() {
    return Boolean(this.list.querySelector(".editor"));
  }

  // The view follows the text only while the person is at its end; looking back is not disturbed.

  scrolled() {
    const { scrollTop } = this.scroller;
    const distance = this.distance();
    if (scrollTop < this.lastTop && distance > 1) this.pinned = false;
    else if (distance <= 1 || (scrollTop > this.lastTop && distance < 24)) this.pinned = true;
    this.lastTop = scrollTop;
    this.toEnd.hidden = this.pinned || distance < 120;
  }

  distance() {
    const { scrollTop, scrollHeight, clientHeight } = this.scroller;
    return scrollHeight - clientHeight - scrollTop;
  }

  unpin() {
    if (this.scroller.scrollTop > 0) this.pinned = false;
  }

  follow() {
    if (this.pinned) this.scroller.scrollTop = this.scroller.scrollHeight;
    this.lastTop = this.scroller.scrollTop;
    this.toEnd.hidden = this.pinned || this.distance() < 120;
  }

  scrollToEnd() {
    this.pinned = true;
    this.follow();
  }
}

/** What the person said. */
class QuestionView {
  constructor(message, actions) {
    this.message = message;
    this.actions = actions;
    this.element = element("li", { class: "message question" });
    this.update();
  }

  update() {
    const { content } = this.message;
    this.element.replaceChildren(
      element("h2", { class: "visually-hidden" }, "You"),
      element("div", { class: "bubble" }, content),
      element(
        "div",
        { class: "tools" },
        iconButton("copy", "Copy message", (event) => copyWithButton(event.currentTarget, content)),
        iconButton("edit", "Edit and ask again", () => this.startEditing()),
      ),
    );
  }

  startEditing() {
    const area = element("textarea", { "aria-label": "Edit your message", rows: "1" });
    area.value = this.message.content;
    const finish = () => {
      this.update();
      this.actions.closed();
      this.element.querySelector(".tools button:last-child").focus();
    };
    const send = () => {
      const text = area.value.trim();
      if (text) this.actions.edit(text);
    };
    area.addEventListener("input", () => fitHeight(area));
    area.addEventListener("keydown", (event) => {
      if (isComposing(event)) return;
      if (event.key === "Enter" && !event.shiftKey) {
        event.preventDefault();
        send();
      } else if (event.key === "Escape") {
        event.stopPropagation();
        finish();
      }
    });
    const editor = element(
      "div",
      { class: "editor" },
      area,
      element(
        "div",
        { class: "editor-foot" },
        element("span", { class: "hint" }, "What followed is dropped; you can undo it."),
        element("button", { type: "button", class: "button", click: finish }, "Cancel"),
        element("button", { type: "button", class: "button primary", click: send }, "Ask again"),
      ),
    );
    this.element.replaceChildren(editor);
    fitHeight(area);
    area.focus();
    area.setSelectionRange(area.value.length, area.value.length);
  }
}

/** What the model said, and what there is to say about it. */
class AnswerView {
  constructor(message, actions) {
    this.message = message;
    this.actions = actions;
    this.markdown = new MarkdownView();
    this.status = element("div", { class: "status" });
    this.foot = element("div", { class: "foot" });
    this.element = element(
      "li",
      { class: "message answer" },
      element("h2", { class: "visually-hidden" }, message.model ?? "Model"),
      this.markdown.element,
      this.status,
      this.foot,
    );
    this.shown = null;
    this.update();
  }

  update() {
    const { message } = this;
    const running = message.state === "waiting" || message.state === "writing";
    this.markdown.update(message.content, { open: message.state === "writing" });
    this.element.setAttribute("aria-busy", String(running));
    this.element.dataset.state = message.state;
    // The rest changes rarely: building it for every token would be work for nothing.
    const shown = JSON.stringify([message.state, message.wait, message.error, message.usage, message.finish]);
    if (shown === this.shown) return;
    this.shown = shown;
    this.status.replaceChildren(...this.statusNodes());
    this.foot.replaceChildren(...(running ? [] : this.footNodes()));
  }

  statusNodes() {
    const { state, wait, error, content } = this.message;
    if (state === "waiting" && wait) {
      const text = `The server is busy. Trying again in ${wait} s…`;
      const cancel = element(
        "button",
        { type: "button", class: "text-button", click: this.actions.stop },
        "Cancel",
      );
      return [element("div", { class: "banner" }, icon("clock"), element("p", {}, text), cancel)];
    }
    if (state === "waiting") {
      return [
        element(
          "div",
          { class: "thinking" },
          element("span", { class: "visually-hidden" }, "Waiting for the answer"),
          element("i"),
          element("i"),
          element("i"),
        ),
      ];
    }
    if (state === "cut")
      return [this.banner("This answer was cut off when the page closed.", "What came is kept.")];
    if (state !== "failed") return [];
    if (error.status === 401 || error.status === 403) {
      const enter = element(
        "button",
        { type: "button", class: "button", click: this.actions.enterKey },
        "Enter API key",
      );
      return [this.banner("The server asks for an API key.", error.text, enter)];
    }
    if (error.code === "context_length_exceeded") {
      const change = element(
        "button",
        { type: "button", class: "button", click: this.actions.change },
        icon("edit"),
        "Edit",
      );
      return [this.banner("This is more than the model can read at once.", TOO_LONG, change)];
    }
    return [
      this.banner(
        content ? "The answer broke off." : "No answer came.",
        error.text + (content ? " What came is kept." : ""),
      ),
    ];
  }

  banner(title, text, button = null) {
    const retry = element(
      "button",
      { type: "button", class: "button retry", click: this.actions.retry },
      icon("retry"),
      "Retry",
    );
    // Seen only once the conversation has gone on.
    const note = "The model no longer reads the message above.";
    const unread = this.message.content ? [] : [element("p", { class: "unread" }, note)];
    return element(
      "div",
      { class: "banner problem", role: "alert" },
      icon("alert"),
      element("div", {}, element("strong", {}, title), element("p", {}, text), ...unread),
      button ?? retry,
    );
  }

  footNodes() {
    const { message } = this;
    const tools = [];
    if (message.content) {
      tools.push(
        iconButton("copy", "Copy answer", (event) => copyWithButton(event.currentTarget, message.content)),
      );
    }
    if (message.state === "done" || message.state === "stopped") {
      tools.push(iconButton("retry", "Answer again", this.actions.retry, { class: "icon-button retry" }));
    }
    return [element("div", { class: "tools" }, ...tools), element("p", { class: "facts" }, ...this.facts())];
  }

  facts() {
    const { model, usage, timing, finish, state, content, omitted, temperature } = this.message;
    const facts = [];
    if (model) facts.push(element("span", {}, model));
    const tokens = usage?.completion_tokens;
    if (tokens !== undefined)
      facts.push(element("span", {}, `${tokens} ${tokens === 1 ? "token" : "tokens"}`));
    // The first token's time is the prompt's: speed is counted from there.
    const writing = timing ? timing.last - timing.first : 0;
    // What comes at once says nothing of how fast it was written.
    if (tokens > 1 && writing > 0.2)
      facts.push(element("span", {}, `${rate((tokens - 1) / writing)} tokens/s`));
    if (timing) facts.push(element("span", {}, `first after ${duration(timing.first)}`));
    if (state === "stopped")
      facts.push(element("span", {}, content ? "stopped by you" : "stopped before it began"));
    if (state === "done" && !content) facts.push(element("span", {}, "empty answer"));
    if (omitted > 0) facts.push(element("span", { class: "mark" }, `the oldest ${omitted} messages had no room`));
    if (temperature !== undefined)
      facts.push(element("span", { title: "Another answer is chosen more freely" }, `temperature ${temperature.toFixed(1)}`));
    if (finish === "length")
      facts.push(element("span", { class: "mark" }, "cut off at the token limit"));
    return facts;
  }
}

function rate(value) {
  return value >= 100 ? Math.round(value).toLocaleString("en") : value.toPrecision(2);
}

function duration(seconds) {
  return seconds < 1 ? `${Math.max(1, Math.round(seconds * 1000))} ms` : `${seconds.toFixed(1)} s`;
}
