// The panel of a conversation's settings: what the model is told first, and how its words are chosen.

import { DEFAULTS } from "./store.js";

const NUMBERS = {
  temperature: { least: 0, most: 2 },
  top_p: { least: 0.01, most: 1 },
  max_tokens: { least: 1, most: 1_000_000, whole: true, optional: true },
  seed: { least: 0, most: Number.MAX_SAFE_INTEGER, whole: true, optional: true },
};

/** The form in the panel; `changed(conversation)` is called after each change, `wasReset(before)` when the defaults are back. */
export class Settings {
  constructor({ form, changed, keepAsDefaults, wasReset }) {
    this.form = form;
    this.changed = changed;
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("input", (event) => this.read(event.target));
    form.querySelector("[data-action=reset]").addEventListener("click", () => {
      const before = this.values();
      this.set(this.conversation, DEFAULTS);
      wasReset(this.conversation, before);
    });
    form.querySelector("[data-action=keep]").addEventListener("click", () => {
      keepAsDefaults(this.values());
    });
  }

  values() {
    return Object.fromEntries(Object.keys(DEFAULTS).map((name) => [name, this.conversation[name]]));
  }

  set(conversation, values) {
    Object.assign(conversation, values);
    if (conversation === this.conversation) this.show(conversation);
    this.changed(conversation);
  }

  /** Whether the person is writing in it. */
  isInUse() {
    return this.form.contains(document.activeElement) && document.activeElement.matches("input, textarea");
  }

  /** Fills the form with the settings of a conversation. */
  show(conversation) {
    this.conversation = conversation;
    for (const name of Object.keys(DEFAULTS)) {
      const field = this.form.elements[name];
      field.value = conversation[name] ?? "";
      this.say(field, null);
    }
    this.showValues();
  }

  showValues() {
    for (const name of ["temperature", "top_p"]) {
      this.form.querySelector(`output[for=${name}]`).textContent = Number(this.conversation[name]).toFixed(2);
    }
  }

  /** Says under a field what is wrong with it. */
  say(field, problem) {
    const place = this.form.querySelector(`#${field.id}-problem`);
    if (problem) field.setAttribute("aria-invalid", "true");
    else field.removeAttribute("aria-invalid");
    if (!place) return;
    place.textContent = problem ?? "";
    place.hidden = !problem;
  }

  read(field) {
    if (!(field.name in DEFAULTS)) return;
    const value = field.name === "system" ? field.value : readNumber(field.value, NUMBERS[field.name]);
    if (value === undefined || field.validity.badInput) {
      const { least, most, whole } = NUMBERS[field.name];
      const range = whole ? `a whole number from ${least} on` : `${least} to ${most}`;
      const counts = this.conversation[field.name];
      return this.say(field, `Give ${range}. Until then ${counts === null ? "it is as if empty" : `${counts} counts`}.`);
    }
    this.say(field, null);
    this.conversation[field.name] = value;
    this.showValues();
    this.changed(this.conversation);
  }
}

/** The number, null when an optional one is left empty, undefined when it is none that can be used. */
function readNumber(text, { least, most, whole = false, optional = false }) {
  if (text.trim() === "") return optional ? null : undefined;
  const number = Number(text);
  const fits = number >= least && number <= most && (!whole || Number.isInteger(number));
  return fits ? number : undefined;
}
