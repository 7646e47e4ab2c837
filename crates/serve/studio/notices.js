// Short notices: what just happened (with a way back where there is one), and words for screen readers.

import { element } from "./dom.js";

const SHOWN_FOR = 8000;
const tray = document.getElementById("notices");
const speaker = document.getElementById("speaker");

/**
 * Shows a notice for a while; `action` is a `{ label, run }` that takes back what happened. Returns what closes it, for when that
 * cannot be taken back any more.
 */
export function notify(text, action = null) {
  const notice = element("div", { class: "notice" }, element("span", {}, text));
  let timer;
  const close = () => {
    clearTimeout(timer);
    notice.remove();
  };
  const start = () => {
    clearTimeout(timer);
    timer = setTimeout(close, SHOWN_FOR);
  };
  if (action) {
    const run = () => {
      close();
      action.run();
    };
    notice.append(element("button", { type: "button", class: "text-button", click: run }, action.label));
  }
  // Nobody should lose "Undo" under the pointer or the focus.
  for (const name of ["pointerenter", "focusin"]) notice.addEventListener(name, () => clearTimeout(timer));
  for (const name of ["pointerleave", "focusout"]) notice.addEventListener(name, start);
  while (tray.childElementCount > 1) tray.firstElementChild.remove();
  tray.append(notice);
  start();
  return close;
}

/** Says something to those who listen to the page. */
export function announce(text) {
  speaker.textContent = text;
}
