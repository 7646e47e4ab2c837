// Small helpers to build DOM nodes. Text always goes in as text nodes, never as HTML.

const SVG = "http://www.w3.org/2000/svg";

/**
 * Builds an element. Attributes that are functions become event listeners (`{ click: … }`), `true` becomes an empty
 * attribute, and `false`, `null` and `undefined` are left out. Children are nodes or strings.
 */
export function element(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(key, value);
    else if (value === true) node.setAttribute(key, "");
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(key, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

/** A picture from the sprite in index.html; the control around it carries the label. */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS(SVG, "use");
  use.setAttribute("href", `#icon-${name}`);
  svg.append(use);
  return svg;
}

/** A button that shows only a picture; the label is its accessible name and its tooltip. */
export function iconButton(name, label, click, attributes = {}) {
  return element(
    "button",
    { type: "button", class: "icon-button", "aria-label": label, title: label, click, ...attributes },
    icon(name),
  );
}

/** Puts text on the clipboard and resolves to whether it worked. */
export async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // Browsers give pages without TLS on other machines no clipboard object; the old command still works there.
    const field = element("textarea", { class: "visually-hidden", "aria-hidden": "true", readonly: true });
    field.value = text;
    const focused = document.activeElement;
    document.body.append(field);
    field.select();
    const copied = document.execCommand("copy");
    field.remove();
    focused?.focus?.();
    return copied;
  }
}

/** Copies text and lets the button say for a moment that it did. */
export async function copyWithButton(button, text) {
  const copied = await copyText(text);
  const use = button.querySelector("use");
  const label = button.getAttribute("aria-label");
  if (button.classList.contains("copied")) return copied;
  button.classList.add("copied");
  button.setAttribute("aria-label", copied ? "Copied" : "Could not copy");
  use?.setAttribute("href", copied ? "#icon-check" : "#icon-close");
  setTimeout(() => {
    button.classList.remove("copied");
    button.setAttribute("aria-label", label);
    use?.setAttribute("href", "#icon-copy");
  }, 1600);
  return copied;
}

/** Makes a text area as tall as its text; the style sheet sets the limit. */
export function fitHeight(area) {
  area.style.height = "auto";
  area.style.height = `${area.scrollHeight + area.offsetHeight - area.clientHeight}px`;
}

/** Whether a key press belongs to an input method that is still composing a character. */
export function isComposing(event) {
  return event.isComposing || event.keyCode === 229;
}
