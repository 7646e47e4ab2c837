// Markdown to a tree of plain values: no DOM here, so that it can be tested alone.
//
// Blocks:  { type: "paragraph" | "heading" | "code" | "quote" | "list" | "table" | "rule", line, … }
// Inline:  strings and { tag: "strong" | "em" | "del" | "code" | "link" | "image" | "br", children?, text?, url? }
//
// HTML in the text is text. Time grows linearly with the text (within a constant for nesting), whatever it contains:
// models write anything.

const DEEPEST = 12;
// Of two parts that can hold the same character, one after the other, a long line that does not match has square many divisions.
const FENCE = /^ {0,3}(?:(`{3,})([^`]*)|(~{3,})([^]*))$/;
const HEADING = /^ {0,3}(#{1,6})(?:[ \t]+(.*))?$/;
const RULE = /^ {0,3}(?:(?:\*[ \t]*){3,}|(?:-[ \t]*){3,}|(?:_[ \t]*){3,})$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( *)([-*+]|\d{1,9}[.)])(?:([ \t]+)(.*)|)$/;
const DELIMITERS = /^ {0,3}\|?[ \t]*:?-+:?[ \t]*(?:\|[ \t]*:?-+:?[ \t]*)*(?:\|[ \t]*)?$/;

/**
 * Parses Markdown into blocks. `open` says that more text will follow: marks of emphasis and code that are not closed
 * yet are taken as closed at the end, so that the text does not jump when their ends arrive.
 */
export function parse(text, { open = false } = {}) {
  const lines = text.split("\n").map((line) => (line.endsWith("\r") ? line.slice(0, -1) : line));
  return parseBlocks(lines, 0, open);
}

function parseBlocks(lines, depth, open) {
  const blocks = [];
  let at = 0;
  while (at < lines.length) {
    if (isBlank(lines[at])) {
      at += 1;
      continue;
    }
    const start = at;
    const [block, next] = parseBlock(lines, at, depth, open);
    block.line = start;
    blocks.push(block);
    at = next;
  }
  return blocks;
}

function parseBlock(lines, at, depth, open) {
  const line = lines[at];
  const fence = FENCE.exec(line);
  if (fence) return parseFence(lines, at, fence);
  const heading = HEADING.exec(line);
  if (heading) {
    const inline = parseInline(withoutClosingMarks(heading[2] ?? ""), open && at === lines.length - 1);
    return [{ type: "heading", level: heading[1].length, inline }, at + 1];
  }
  if (RULE.test(line)) return [{ type: "rule" }, at + 1];
  if (depth < DEEPEST && QUOTE.test(line)) return parseQuote(lines, at, depth, open);
  if (depth < DEEPEST && isItem(line)) return parseList(lines, at, depth, open);
  if (startsTable(lines, at)) return parseTable(lines, at, open);
  return parseParagraph(lines, at, depth, open);
}

const isBlank = (line) => line.trim() === "";
const indentOf = (line) => line.length - line.trimStart().length;

/** The text of a heading without the `#` that may stand at its end. */
function withoutClosingMarks(text) {
  const trimmed = text.trim();
  let end = trimmed.length;
  while (trimmed[end - 1] === "#") end -= 1;
  const closes = end < trimmed.length && (end === 0 || /\s/.test(trimmed[end - 1]));
  return closes ? trimmed.slice(0, end).trimEnd() : trimmed;
}

function isItem(line) {
  const item = ITEM.exec(line);
  return item !== null && !RULE.test(line);
}

function startsBlock(lines, at, depth) {
  const line = lines[at];
  if (FENCE.test(line) || HEADING.test(line) || RULE.test(line)) return true;
  if (depth < DEEPEST && QUOTE.test(line)) return true;
  if (startsTable(lines, at)) return true;
  const item = depth < DEEPEST && ITEM.exec(line);
  // Within a paragraph, "1986." at the start of a line is most likely not a list: only 1 begins one there.
  return Boolean(item) && Boolean(item[4]) && (/[-*+]/.test(item[2]) || Number.parseInt(item[2], 10) === 1);
}

function parseFence(lines, at, fence) {
  const [mark, words] = fence[1] ? [fence[1], fence[2]] : [fence[3], fence[4]];
  const indent = indentOf(lines[at]);
  const closing = new RegExp(`^ {0,3}\\${mark[0]}{${mark.length},}[ \\t]*$`);
  const content = [];
  let next = at + 1;
  let closed = false;
  for (; next < lines.length; next += 1) {
    if (closing.test(lines[next])) {
      closed = true;
      next += 1;
      break;
    }
    content.push(lines[next].slice(Math.min(indent, indentOf(lines[next]))));
  }
  const language = words.trim().split(/\s+/)[0].toLowerCase();
  return [{ type: "code", language, text: content.join("\n"), closed }, next];
}

function parseQuote(lines, at, depth, open) {
  const inner = [];
  let next = at;
  for (; next < lines.length; next += 1) {
    if (QUOTE.test(lines[next])) inner.push(lines[next].replace(QUOTE, ""));
    else if (isBlank(lines[next]) || startsBlock(lines, next, depth) || isBlank(inner.at(-1))) break;
    else inner.push(lines[next]);
  }
  return [{ type: "quote", blocks: parseBlocks(inner, depth + 1, open && next === lines.length) }, next];
}

function parseList(lines, at, depth, open) {
  const first = ITEM.exec(lines[at]);
  const ordered = /\d/.test(first[2]);
  const kind = first[2].at(-1);
  const base = first[1].length;
  const items = [];
  let loose = false;
  let next = at;
  while (next < lines.length) {
    const item = ITEM.exec(lines[next]);
    const ours = item && !RULE.test(lines[next]) && item[2].at(-1) === kind && item[1].length < base + 2;
    if (!ours || /\d/.test(item[2]) !== ordered) break;
    const width = item[1].length + item[2].length + Math.min(item[3]?.length ?? 1, 4);
    const inner = [item[4] ?? ""];
    next += 1;
    while (next < lines.length) {
      const line = lines[next];
      if (isBlank(line)) {
        // Blank lines belong to the item only when something of it follows.
        let after = next;
        while (after < lines.length && isBlank(lines[after])) after += 1;
        if (after === lines.length || indentOf(lines[after]) < item[1].length + 2) break;
        for (; next < after; next += 1) inner.push("");
      } else if (indentOf(line) >= item[1].length + 2) {
        inner.push(line.slice(Math.min(width, indentOf(line))));
        next += 1;
      } else if (!ITEM.test(line) && !startsBlock(lines, next, depth) && !isBlank(inner.at(-1))) {
        inner.push(line.trimStart());
        next += 1;
      } else break;
    }
    let after = next;
    while (after < lines.length && isBlank(lines[after])) after += 1;
    const task = /^\[([ xX])\][ \t]+/.exec(inner[0]);
    if (task) inner[0] = inner[0].slice(task[0].length);
    const last = after >= lines.length;
    items.push({
      checked: task ? task[1] !== " " : null,
      blocks: parseBlocks(inner, depth + 1, open && last),
    });
    if (after > next && after < lines.length) {
      const following = ITEM.exec(lines[after]);
      const goesOn =
        following &&
        !RULE.test(lines[after]) &&
        following[2].at(-1) === kind &&
        /\d/.test(following[2]) === ordered &&
        following[1].length < base + 2;
      if (!goesOn) break;
      loose = true;
      next = after;
    }
  }
  return [{ type: "list", ordered, start: ordered ? Number.parseInt(first[2], 10) : 1, loose, items }, next];
}

function startsTable(lines, at) {
  const header = lines[at];
  const delimiters = lines[at + 1];
  if (delimiters === undefined || !header.includes("|") || !delimiters.includes("|")) return false;
  return DELIMITERS.test(delimiters) && cellsOf(header).length === cellsOf(delimiters).length;
}

function cellsOf(line) {
  let row = line.trim();
  if (row.startsWith("|")) row = row.slice(1);
  if (row.endsWith("|") && !row.endsWith("\\|")) row = row.slice(0, -1);
  return row.split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll("\\|", "|"));
}

function parseTable(lines, at, open) {
  const head = cellsOf(lines[at]);
  const align = cellsOf(lines[at + 1]).map((cell) => {
    const [left, right] = [cell.startsWith(":"), cell.endsWith(":")];
    return left && right ? "center" : right ? "right" : "left";
  });
  const rows = [];
  let next = at + 2;
  for (; next < lines.length && !isBlank(lines[next]) && lines[next].includes("|"); next += 1) {
    const cells = cellsOf(lines[next]).slice(0, head.length);
    while (cells.length < head.length) cells.push("");
    rows.push(cells.map((cell) => parseInline(cell, open && next === lines.length - 1)));
  }
  return [{ type: "table", align, head: head.map((cell) => parseInline(cell, false)), rows }, next];
}

function parseParagraph(lines, at, depth, open) {
  let next = at + 1;
  while (next < lines.length && !isBlank(lines[next]) && !startsBlock(lines, next, depth)) next += 1;
  const text = lines
    .slice(at, next)
    .map((line) => line.trimStart())
    .join("\n")
    .trimEnd();
  return [{ type: "paragraph", inline: parseInline(text, open && next === lines.length) }, next];
}

// ---- Inline ----

const PLAIN = /[^\\`[\]!<*_~\n&hH]+/y;
const ADDRESS = /https?:\/\/[^\s<>"`]+/iy;
const AUTOLINK = /<((?:https?:\/\/|mailto:)[^\s<>]+)>/iy;
const BREAK = /<br ?\/?>/iy;
const ENTITY = /&(amp|lt|gt|quot|apos|nbsp|#39);/y;
const ENTITIES = { amp: "&", lt: "<", gt: ">", quot: '"', apos: "'", nbsp: "\u00a0", "#39": "'" };
const PUNCTUATION = /[\p{P}\p{S}]/u;
const MOST_OPENERS = 100;

/** Parses the text of a paragraph, a heading or a cell. */
export function parseInline(text, open = false, depth = 0) {
  return new Inline(text, open, depth).run();
}

class Inline {
  constructor(text, open, depth) {
    this.text = text;
    this.open = open;
    this.depth = depth;
    this.at = 0;
    this.out = [];
    this.openers = [];
    this.unclosedTicks = new Set();
  }

  run() {
    const { text } = this;
    while (this.at < text.length) {
      const plain = this.match(PLAIN);
      if (plain) this.push(plain[0]);
      else this.special(text[this.at]);
    }
    if (this.open && this.depth === 0) this.closeOpenMarks();
    return this.flatten();
  }

  match(expression) {
    expression.lastIndex = this.at;
    const found = expression.exec(this.text);
    if (found) this.at = expression.lastIndex;
    return found;
  }

  push(value) {
    if (typeof value === "string" && typeof this.out.at(-1) === "string")
      this.out[this.out.length - 1] += value;
    else this.out.push(value);
  }

  special(character) {
    const { text, at } = this;
    if (character === "\\") {
      const next = text[at + 1];
      if (next === "\n") {
        this.at += 2;
        this.push({ tag: "br" });
      } else if (next !== undefined && /[!-/:-@[-`{-~]/.test(next)) {
        this.at += 2;
        this.push(next);
      } else this.literal(1);
    } else if (character === "\n") {
      // A model's line ends are meant: small models write lists without marks.
      if (typeof this.out.at(-1) === "string") this.out[this.out.length - 1] = this.out.at(-1).trimEnd();
      this.at += 1;
      this.push({ tag: "br" });
    } else if (character === "`") this.code();
    else if (character === "!" || character === "[") {
      if (!this.link(character === "!")) this.literal(1);
    } else if (character === "<") {
      const address = this.match(AUTOLINK);
      if (address)
        this.push({ tag: "link", url: address[1], children: [address[1].replace(/^mailto:/i, "")] });
      else if (this.match(BREAK)) this.push({ tag: "br" });
      else this.literal(1);
    } else if (character === "&") {
      const entity = this.match(ENTITY);
      if (entity) this.push(ENTITIES[entity[1]]);
      else this.literal(1);
    } else if (character === "h" || character === "H") this.address();
    else if (character === "*" || character === "_" || character === "~") this.mark(character);
    else this.literal(1);
  }

  literal(count) {
    this.push(this.text.slice(this.at, this.at + count));
    this.at += count;
  }

  code() {
    const { text, at } = this;
    let end = at;
    while (text[end] === "`") end += 1;
    const ticks = end - at;
    if (!this.unclosedTicks.has(ticks)) {
      for (let from = end; ; ) {
        const start = text.indexOf("`", from);
        if (start < 0) break;
        let stop = start;
        while (text[stop] === "`") stop += 1;
        if (stop - start === ticks) {
          this.at = stop;
          this.push({ tag: "code", text: trimCode(text.slice(end, start)) });
          return;
        }
        from = stop;
      }
      this.unclosedTicks.add(ticks);
    }
    if (this.open && this.depth === 0 && ticks === 1) {
      this.at = text.length;
      if (end < text.length) this.push({ tag: "code", text: text.slice(end) });
    } else this.literal(ticks);
  }

  /** `[label](address "title")` or, with a `!` before it, a picture, which is never loaded. */
  link(picture) {
    const { text } = this;
    const bracket = this.at + (picture ? 1 : 0);
    if (text[bracket] !== "[" || this.depth > 3) return false;
    this.brackets ??= matchingBrackets(text);
    const close = this.brackets.get(bracket);
    if (close === undefined) return false;
    const target =
      // What is seen ahead is not taken back.
      /\((?=(\s*))\1(?:<([^<>\n]*)>|((?:[^\s()\\]|\\.|\([^\s()]*\))*))(?:\s+(?:"[^"]{0,300}"|'[^']{0,300}'))?\s*\)/y;
    target.lastIndex = close + 1;
    const found = target.exec(text);
    const label = text.slice(bracket + 1, close);
    if (!found) {
      // While the address of a link is still being written, show the label alone.
      if (!this.open || this.depth > 0 || text[close + 1] !== "(" || /[\s)]/.test(text.slice(close + 2)))
        return false;
      this.push({ tag: "link", url: "", children: parseInline(label, false, this.depth + 1) });
      this.at = text.length;
      return true;
    }
    const url = (found[2] ?? found[3]).replace(/\\([!-/:-@[-`{-~])/g, "$1");
    if (picture) this.push({ tag: "image", url, text: label });
    else this.push({ tag: "link", url, children: parseInline(label, false, this.depth + 1) });
    this.at = target.lastIndex;
    return true;
  }

  address() {
    const before = this.text[this.at - 1];
    const found = before !== undefined && /\w/.test(before) ? null : this.match(ADDRESS);
    if (!found) return this.literal(1);
    let end = found[0].length;
    while (`.,;:!?'"*_~`.includes(found[0][end - 1])) end -= 1;
    let closing = count(found[0].slice(0, end), ")") - count(found[0].slice(0, end), "(");
    for (; closing > 0 && found[0][end - 1] === ")"; closing -= 1) end -= 1;
    const url = found[0].slice(0, end);
    this.at -= found[0].length - url.length;
    // Within a label the address is text already: links do not nest.
    if (this.depth > 0) this.push(url);
    else this.push({ tag: "link", url, children: [url] });
  }

  /** Marks of emphasis, by the rules of CommonMark on what stands left and right of them. */
  mark(character) {
    const { text, at } = this;
    let end = at;
    while (text[end] === character) end += 1;
    const before = at === 0 ? " " : text[at - 1];
    const after = end >= text.length ? " " : text[end];
    const [spaceBefore, spaceAfter] = [/\s/.test(before), /\s/.test(after)];
    const [markBefore, markAfter] = [PUNCTUATION.test(before), PUNCTUATION.test(after)];
    const left = !spaceAfter && (!markAfter || spaceBefore || markBefore);
    const right = !spaceBefore && (!markBefore || spaceAfter || markAfter);
    const word = character === "_";
    const mark = {
      mark: character,
      count: end - at,
      opens: left && (!word || !right || markBefore),
      closes: right && (!word || !left || markAfter),
    };
    this.at = end;
    if (character === "~" && mark.count !== 2) return this.push(character.repeat(mark.count));
    if (mark.closes) this.closeMark(mark);
    if (mark.count === 0) return;
    const atEnd = end >= text.length;
    if (this.open && this.depth === 0 && atEnd && !mark.closes && spaceBefore) return;
    if (!mark.opens) return this.push(mark.mark.repeat(mark.count));
    this.out.push(mark);
    this.openers.push(this.out.length - 1);
    if (this.openers.length > MOST_OPENERS) this.openers.shift();
  }

  closeMark(mark) {
    while (mark.count > 0) {
      let found = this.openers.length - 1;
      while (found >= 0 && !pairs(this.out[this.openers[found]], mark)) found -= 1;
      if (found < 0) return;
      const position = this.openers[found];
      const opener = this.out[position];
      const used = mark.mark === "~" || (opener.count >= 2 && mark.count >= 2) ? 2 : 1;
      this.openers.length = found + 1;
      this.wrap(position, mark.mark, used);
      mark.count -= used;
    }
  }

  /** Puts what follows an opener into an element and takes the marks it used from the opener. */
  wrap(position, character, used) {
    const opener = this.out[position];
    const children = literals(this.out.splice(position + 1));
    opener.count -= used;
    if (opener.count === 0) {
      this.out.pop();
      this.openers.pop();
    }
    this.out.push({ tag: character === "~" ? "del" : used === 2 ? "strong" : "em", children });
  }

  closeOpenMarks() {
    while (this.openers.length > 0) {
      const position = this.openers.at(-1);
      const opener = this.out[position];
      const length = textLength(this.out.slice(position + 1));
      // One star that nobody closes for long is a star.
      if (opener.mark === "_" || (opener.count === 1 && length > 80)) {
        this.openers.pop();
        continue;
      }
      this.wrap(position, opener.mark, Math.min(opener.count, 2));
      const wrapped = this.out.at(-1);
      if (wrapped.children.length === 0) this.out.pop();
    }
  }

  flatten() {
    return literals(this.out);
  }
}

function pairs(opener, closer) {
  if (opener.mark !== closer.mark) return false;
  const both = (opener.closes && opener.opens) || (closer.closes && closer.opens);
  return (
    !both || (opener.count + closer.count) % 3 !== 0 || (opener.count % 3 === 0 && closer.count % 3 === 0)
  );
}

/** Marks that found no partner become text again; neighbouring strings become one. */
function literals(nodes) {
  const merged = [];
  for (const node of nodes) {
    const value = node.mark ? node.mark.repeat(node.count) : node;
    if (typeof value === "string" && typeof merged.at(-1) === "string") merged[merged.length - 1] += value;
    else if (value !== "") merged.push(value);
  }
  return merged;
}

function textLength(nodes) {
  return nodes.reduce(
    (sum, node) => sum + (node.length ?? node.text?.length ?? textLength(node.children ?? [])),
    0,
  );
}

function trimCode(text) {
  const line = text.replaceAll("\n", " ");
  return line.startsWith(" ") && line.endsWith(" ") && line.trim() !== "" ? line.slice(1, -1) : line;
}

/** For each opening bracket the position of its partner. */
function matchingBrackets(text) {
  const partners = new Map();
  const open = [];
  for (let at = 0; at < text.length; at += 1) {
    if (text[at] === "\\") at += 1;
    else if (text[at] === "[") open.push(at);
    else if (text[at] === "]" && open.length > 0) partners.set(open.pop(), at);
  }
  return partners;
}

function count(text, character) {
  return text.split(character).length - 1;
}

/** The address if it may be opened (the web and mail), or null: scripts, files and relative addresses may not. */
export function safeAddress(url) {
  try {
    const { protocol, href } = new URL(url);
    return ["http:", "https:", "mailto:"].includes(protocol) ? href : null;
  } catch {
    return null;
  }
}
