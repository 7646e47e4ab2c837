// Shows Markdown while it is being written. Only the last two blocks of a text can still change when more of it comes,
// so only they are parsed again, and only the nodes that differ are touched: a selection stays, nothing flickers, and
// the cost of a step does not grow with the answer.

import { copyWithButton, element, icon } from "./dom.js";
import { highlightLine } from "./highlight.js";
import { parse, safeAddress } from "./markdown.js";

// From the last block down to the element that holds the last text.
const CARET_PATH =
  "p, li, ul, ol, blockquote, h3, h4, h5, h6, .table, table, tbody, tr, td, figure, pre, pre > code, pre > code > span";

/** A text's place in the page. */
export class MarkdownView {
  constructor() {
    this.element = element("div", { class: "markdown" });
    this.text = "";
    this.open = false;
    this.blocks = [];
  }

  /** Shows the text. `open` says that more will follow, and shows a caret at its end. */
  update(text, { open = false } = {}) {
    if (text === this.text && open === this.open) return;
    const grows = text.startsWith(this.text);
    const keep = grows ? Math.max(0, this.blocks.length - 2) : 0;
    const from = this.blocks[keep]?.offset ?? 0;
    const rest = text.slice(from);
    const parsed = parse(rest, { open });
    const starts = lineStarts(rest);
    parsed.forEach((block, index) => {
      const offset = from + starts[block.line];
      const old = this.blocks[keep + index];
      if (old && old.show(block)) old.offset = offset;
      else {
        const view = block.type === "code" ? new CodeView(block) : new BlockView(block);
        view.offset = offset;
        if (old) old.element.replaceWith(view.element);
        else this.element.append(view.element);
        this.blocks[keep + index] = view;
      }
    });
    for (const view of this.blocks.splice(keep + parsed.length)) view.element.remove();
    this.text = text;
    this.open = open;
    this.placeCaret();
  }

  placeCaret() {
    this.caret?.removeAttribute("data-caret");
    this.caret = null;
    if (!this.open) return;
    let last = this.blocks.at(-1)?.element ?? this.element;
    while (last.lastElementChild?.matches(CARET_PATH)) last = last.lastElementChild;
    last.setAttribute("data-caret", "");
    this.caret = last;
  }
}

function lineStarts(text) {
  const starts = [0];
  for (let at = text.indexOf("\n"); at >= 0; at = text.indexOf("\n", at + 1)) starts.push(at + 1);
  return starts;
}

/** Any block but code. */
class BlockView {
  constructor(block) {
    this.element = blockElement(block);
  }

  show(block) {
    const next = block.type === "code" ? null : blockElement(block);
    if (!next || next.nodeName !== this.element.nodeName) return false;
    morph(this.element, next);
    return true;
  }
}

/** A block of code, coloured line by line; lines that are shown already stay. */
class CodeView {
  constructor(block) {
    this.language = block.language;
    this.lines = [];
    this.code = element("code");
    this.element = codeFrame(block.language, this.code);
    this.show(block);
  }

  show(block) {
    if (block.type !== "code" || block.language !== this.language) return false;
    const texts = block.text.split("\n");
    let at = 0;
    while (at < this.lines.length && at < texts.length && this.lines[at].text === texts[at]) at += 1;
    for (const line of this.lines.splice(at)) line.element.remove();
    let state = this.lines[at - 1]?.state ?? null;
    for (; at < texts.length; at += 1) {
      const line = lineElement(texts[at], this.language, state, at + 1 < texts.length);
      if (this.lines.length > 0 && at > 0 && !this.lines[at - 1].ended) {
        this.lines[at - 1].element.append("\n");
        this.lines[at - 1].ended = true;
      }
      this.code.append(line.element);
      this.lines.push(line);
      state = line.state;
    }
    const last = this.lines.at(-1);
    if (last?.ended) {
      last.element.lastChild.remove();
      last.ended = false;
    }
    return true;
  }
}

function lineElement(text, language, state, ended) {
  const highlighted = highlightLine(text, language, state);
  const pieces = highlighted.pieces.map(([kind, piece]) =>
    kind ? element("span", { class: `code-${kind}` }, piece) : piece,
  );
  const line = element("span", {}, ...pieces, ended ? "\n" : null);
  return { text, state: highlighted.state, element: line, ended };
}

function codeFrame(language, code) {
  const copy = element(
    "button",
    {
      type: "button",
      class: "copy-code",
      "aria-label": "Copy this code",
      click: (event) => copyWithButton(event.currentTarget, code.textContent),
    },
    icon("copy"),
    element("span", { class: "when-idle" }, "Copy"),
    element("span", { class: "when-copied" }, "Copied"),
  );
  // The frame scrolls sideways, so the keyboard has to reach it.
  const label = language ? `Code, ${language}` : "Code";
  return element(
    "figure",
    { class: "code" },
    element("figcaption", {}, element("span", {}, language || "code"), copy),
    element("pre", { tabindex: "0", role: "region", "aria-label": label }, code),
  );
}

function blockElement(block) {
  switch (block.type) {
    case "heading":
      // The page has its own first headings: an answer's start below them.
      return element(
        `h${Math.min(block.level + 2, 6)}`,
        { class: `heading-${block.level}` },
        ...inlineNodes(block.inline),
      );
    case "rule":
      return element("hr");
    case "quote":
      return element("blockquote", {}, ...block.blocks.map(nestedElement));
    case "list":
      return listElement(block);
    case "table":
      return tableElement(block);
    default:
      return element("p", {}, ...inlineNodes(block.inline));
  }
}

function nestedElement(block) {
  return block.type === "code" ? new CodeView(block).element : blockElement(block);
}

function listElement({ ordered, start, loose, items }) {
  const list = element(ordered ? "ol" : "ul", { start: ordered && start !== 1 ? String(start) : null });
  for (const { checked, blocks } of items) {
    const item = element("li", { class: checked === null ? null : "task" });
    if (checked !== null) {
      item.append(
        element("input", {
          type: "checkbox",
          disabled: true,
          checked,
          "aria-label": checked ? "Done" : "To do",
        }),
        " ",
      );
    }
    for (const block of blocks) {
      if (block.type === "paragraph" && !loose) item.append(...inlineNodes(block.inline));
      else item.append(nestedElement(block));
    }
    list.append(item);
  }
  return list;
}

function tableElement({ align, head, rows }) {
  const row = (cells, name) =>
    element(
      "tr",
      {},
      ...cells.map((cell, column) =>
        element(name, { class: `align-${align[column]}` }, ...inlineNodes(cell)),
      ),
    );
  const table = element(
    "table",
    {},
    element("thead", {}, row(head, "th")),
    element("tbody", {}, ...rows.map((cells) => row(cells, "td"))),
  );
  return element("div", { class: "table", tabindex: "0", role: "region", "aria-label": "Table" }, table);
}

function inlineNodes(nodes) {
  return nodes.map((node) => {
    if (typeof node === "string") return node;
    switch (node.tag) {
      case "br":
        return element("br");
      case "code":
        return element("code", { class: "inline" }, node.text);
      case "link":
        return linkElement(node.url, inlineNodes(node.children));
      case "image":
        return linkElement(node.url, [`Picture: ${node.text || node.url}`]);
      default:
        return element(node.tag, {}, ...inlineNodes(node.children));
    }
  });
}

function linkElement(url, children) {
  const address = safeAddress(url);
  if (!address) return element("span", {}, ...children);
  return element(
    "a",
    { href: address, title: address, target: "_blank", rel: "noopener noreferrer" },
    ...children,
  );
}

/** Makes a node like another one of the same name, touching only what differs. */
function morph(node, next) {
  if (node.matches?.("figure.code")) {
    // Its lines and its button belong to a view of their own.
    if (node.textContent !== next.textContent) node.replaceWith(next);
    return;
  }
  for (const { name, value } of next.attributes)
    if (node.getAttribute(name) !== value) node.setAttribute(name, value);
  for (const { name } of [...node.attributes]) if (!next.hasAttribute(name)) node.removeAttribute(name);
  const wanted = [...next.childNodes];
  const present = [...node.childNodes];
  wanted.forEach((child, index) => {
    const old = present[index];
    if (!old) node.append(child);
    else if (old.nodeType === Node.TEXT_NODE && child.nodeType === Node.TEXT_NODE) {
      // Appending keeps a selection within the text; replacing would not.
      if (child.data.startsWith(old.data)) old.appendData(child.data.slice(old.data.length));
      else old.data = child.data;
    } else if (old.nodeName === child.nodeName && old.nodeType === Node.ELEMENT_NODE) morph(old, child);
    else old.replaceWith(child);
  });
  for (const old of present.slice(wanted.length)) old.remove();
}
