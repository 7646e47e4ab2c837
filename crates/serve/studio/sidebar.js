// The list of conversations: open, search, rename, export, delete.

import { element, icon, isComposing } from "./dom.js";

const DAY = 24 * 60 * 60 * 1000;
/** Milliseconds in which a pressed mouse button is let go. */
const AFTER_CLICK = 250;

/**
 * The list at the side. `actions` are `rename(conversation, title)`, `exportFile(conversation)` and
 * `remove(conversation)`; `current()` and `isRunning(conversation)` say what to mark.
 */
export class Sidebar {
  constructor({ store, actions, current, isRunning }) {
    Object.assign(this, { store, actions, current, isRunning });
    this.list = document.getElementById("conversations");
    this.search = document.getElementById("search");
    this.menu = document.getElementById("conversation-menu");
    this.search.addEventListener("input", () => this.show());
    this.search.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || !this.search.value) return;
      event.stopPropagation();
      this.clearSearch();
    });
    this.menu.addEventListener("click", (event) => this.chose(event.target.closest("[data-action]")));
    this.menu.addEventListener("keydown", (event) => this.moveInMenu(event));
    this.menu.addEventListener("toggle", (event) => {
      this.opener?.setAttribute("aria-expanded", String(event.newState === "open"));
    });
    this.list.addEventListener("scroll", () => this.menu.matches(":popover-open") && this.menu.hidePopover());
  }

  /** Shows all conversations again. */
  clearSearch() {
    this.search.value = "";
    this.show();
  }

  /** Draws the list anew. */
  show() {
    if (this.list.querySelector("input")) return;
    const focused = this.list.contains(document.activeElement) ? document.activeElement : null;
    const query = this.search.value;
    const conversations = this.store.list(query);
    const groups = new Map();
    for (const conversation of conversations) {
      const name = groupOf(conversation.updated);
      groups.set(name, [...(groups.get(name) ?? []), conversation]);
    }
    const sections = [...groups].map(([name, members]) =>
      element(
        "section",
        {},
        element("h3", {}, name),
        element("ul", {}, ...members.map((each) => this.item(each))),
      ),
    );
    const empty = query.trim() ? "No conversation contains that." : "Your conversations will be listed here.";
    this.list.replaceChildren(
      ...(sections.length > 0 ? sections : [element("p", { class: "empty-list" }, empty)]),
    );
    const item = focused && this.find(focused.closest("li")?.dataset.id);
    item?.querySelector(focused.localName)?.focus();
  }

  find(id) {
    return this.list.querySelector(`li[data-id="${id}"]`);
  }

  item(conversation) {
    const title = conversation.title || "Untitled";
    const here = this.current().id === conversation.id;
    const link = element(
      "a",
      { href: `#c=${conversation.id}`, "aria-current": here ? "true" : null, title },
      element("span", { class: "title" }, title),
      this.isRunning(conversation)
        ? element("span", { class: "running", role: "img", "aria-label": "answering" })
        : null,
    );
    const more = element(
      "button",
      {
        type: "button",
        class: "icon-button",
        "aria-label": `More for “${title}”`,
        "aria-haspopup": "menu",
        "aria-expanded": "false",
        click: () => this.openMenu(more, conversation),
      },
      icon("more"),
    );
    return element("li", { "data-id": conversation.id }, link, more);
  }

  openMenu(opener, conversation) {
    this.opener = opener;
    this.chosen = conversation;
    const place = opener.getBoundingClientRect();
    this.menu.showPopover();
    const { offsetWidth, offsetHeight } = this.menu;
    const below = place.bottom + 4 + offsetHeight < innerHeight;
    this.menu.style.left = `${Math.max(8, Math.min(place.right - offsetWidth, innerWidth - offsetWidth - 8))}px`;
    this.menu.style.top = `${below ? place.bottom + 4 : place.top - 4 - offsetHeight}px`;
    this.menu.querySelector("button").focus();
  }

  moveInMenu(event) {
    const items = [...this.menu.querySelectorAll("button")];
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (event.key === "Tab") this.menu.hidePopover();
    if (!step) return;
    event.preventDefault();
    items.at((items.indexOf(document.activeElement) + step) % items.length).focus();
  }

  chose(button) {
    if (!button) return;
    this.menu.hidePopover();
    const action = button.dataset.action;
    if (action === "rename") this.rename(this.chosen);
    else this.actions[action](this.chosen);
  }

  rename(conversation) {
    const item = this.find(conversation.id);
    const field = element("input", {
      type: "text",
      "aria-label": "Name of the conversation",
      maxlength: "120",
    });
    field.value = conversation.title;
    let open = true;
    const close = (keep, { byKey = true } = {}) => {
      if (!open) return;
      open = false;
      const title = field.value.trim();
      field.remove();
      if (keep && title) this.actions.rename(conversation, title);
      this.show();
      if (byKey) this.find(conversation.id)?.querySelector("a").focus();
    };
    field.addEventListener("keydown", (event) => {
      if (isComposing(event)) return;
      event.stopPropagation();
      if (event.key === "Enter") close(true);
      else if (event.key === "Escape") close(false);
    });
    // A list that is drawn anew under the mouse would swallow the click that ended this.
    field.addEventListener("blur", () => setTimeout(() => close(true, { byKey: false }), AFTER_CLICK));
    item.replaceChildren(field);
    field.focus();
    field.select();
  }
}

function groupOf(time) {
  const midnight = new Date().setHours(0, 0, 0, 0);
  if (time >= midnight) return "Today";
  if (time >= midnight - DAY) return "Yesterday";
  if (time >= midnight - 6 * DAY) return "This week";
  return new Date(time).toLocaleDateString("en", { month: "long", year: "numeric" });
}
