// Light syntax highlighting, one line at a time, so that code can be coloured while it is being written: what a line
// leaves open (a comment, a long string) is the state that the next line starts with.

const words = (text) => new Set(text.split(" "));

const C_STRINGS = [/"(?:[^"\\]|\\.)*"?/y, /'(?:[^'\\]|\\.)*'?/y];
const C_COMMENTS = { line: ["//"], blocks: [{ start: "/*", end: "*/", kind: "comment" }] };

const JAVASCRIPT = {
  ...C_COMMENTS,
  blocks: [...C_COMMENTS.blocks, { start: "`", end: "`", kind: "string" }],
  strings: C_STRINGS,
  keywords: words(
    "abstract as async await break case catch class const continue debugger declare default delete do else enum export" +
      " extends false finally for from function get if implements import in instanceof interface let new null of" +
      " private protected public readonly return set static super switch this throw true try type typeof undefined" +
      " var void while yield",
  ),
};
const PYTHON = {
  line: ["#"],
  blocks: [
    { start: '"""', end: '"""', kind: "string" },
    { start: "'''", end: "'''", kind: "string" },
  ],
  strings: [/[rbfRBF]{0,2}"(?:[^"\\]|\\.)*"?/y, /[rbfRBF]{0,2}'(?:[^'\\]|\\.)*'?/y],
  keywords: words(
    "False None True and as assert async await break case class continue def del elif else except finally for from" +
      " global if import in is lambda match nonlocal not or pass raise return self try while with yield",
  ),
};
const RUST = {
  ...C_COMMENTS,
  strings: [/b?"(?:[^"\\]|\\.)*"?/y, /b?'(?:[^'\\]|\\.[^']*)'/y],
  keywords: words(
    "Self as async await box break const continue crate dyn else enum extern false fn for if impl in let loop match mod" +
      " move mut pub ref return self static struct super trait true type union unsafe use where while",
  ),
};
const C_LIKE = {
  ...C_COMMENTS,
  strings: C_STRINGS,
  keywords: words(
    "auto bool boolean break byte case catch chan char class const constexpr continue default defer delete do double" +
      " else enum extends extern false final finally float for func go goto if implements import include inline int" +
      " interface internal let long map namespace new nil null nullptr override package private protected public" +
      " range return select short signed sizeof static string struct super switch template this throw throws true" +
      " try type typedef union unsigned using val var virtual void volatile when while",
  ),
};
const SHELL = {
  line: ["#"],
  blocks: [],
  strings: [/"(?:[^"\\]|\\.)*"?/y, /'[^']*'?/y],
  variables: /\$(?:\w+|\{[^}]*\}?|[@#?*!$-])/y,
  keywords: words(
    "alias case cd do done echo elif else esac eval exec exit export fi for function if in local read return set shift" +
      " source sudo then trap unset until while",
  ),
};
const SQL = {
  line: ["--"],
  blocks: C_COMMENTS.blocks,
  strings: [/'(?:[^']|'')*'?/y],
  ignoreCase: true,
  keywords: words(
    "add all alter and as asc begin between by case commit create cross default delete desc distinct drop else end" +
      " exists foreign from full group having in index inner insert into is join key left like limit not null offset" +
      " on or order outer primary references returning right rollback select set table then union unique update" +
      " using values view when where with",
  ),
};
const JSON_LIKE = {
  ...C_COMMENTS,
  strings: [/"(?:[^"\\]|\\.)*"?/y],
  names: /"(?:[^"\\]|\\.)*"(?=\s*:)/y,
  keywords: words("true false null"),
};
const SETTINGS = {
  line: ["#"],
  blocks: [{ start: '"""', end: '"""', kind: "string" }],
  strings: C_STRINGS,
  names: /(?:(?<=^\s*(?:- )?)[\w.-]+(?=\s*[:=])|(?<=^\s*)\[[^\]]*\]+)/y,
  keywords: words("true false null yes no on off"),
};
const CSS = {
  line: [],
  blocks: C_COMMENTS.blocks,
  strings: C_STRINGS,
  names: /(?:--)?[a-z-]+(?=\s*:\s)/y,
  keywords: words("important"),
};
const MARKUP = {
  line: [],
  blocks: [{ start: "<!--", end: "-->", kind: "comment" }],
  strings: [/"[^"]*"?(?=[^<]*>)/y],
  names: /<\/?[\w:-]+|\/?>/y,
  keywords: new Set(),
};
const PLAIN = {
  line: ["//", "#"],
  blocks: C_COMMENTS.blocks,
  strings: [/"(?:[^"\\]|\\.)*"/y],
  keywords: new Set(),
};

const LANGUAGES = new Map();
for (const [names, rules] of [
  ["javascript js mjs cjs jsx typescript ts tsx", JAVASCRIPT],
  ["python py python3", PYTHON],
  ["rust rs", RUST],
  ["c h cpp c++ cc csharp cs java kotlin kt go golang swift scala dart php zig", C_LIKE],
  ["bash sh shell zsh fish console", SHELL],
  ["sql sqlite postgresql mysql", SQL],
  ["json jsonl json5 jsonc", JSON_LIKE],
  ["toml yaml yml ini conf", SETTINGS],
  ["css scss less", CSS],
  ["html xml svg vue xhtml", MARKUP],
]) {
  for (const name of names.split(" ")) LANGUAGES.set(name, rules);
}
const COLOURLESS = new Set([
  "",
  "text",
  "txt",
  "plain",
  "plaintext",
  "markdown",
  "md",
  "output",
  "log",
  "diff",
]);

const NUMBER = /(?:0[xX][\da-fA-F_]+|0[bB][01_]+|\d[\d_]*(?:\.\d[\d_]*)?(?:[eE][+-]?\d+)?)\w*/y;
const WORD = /[\p{L}_$][\p{L}\p{N}_$]*/uy;
const REST = /\s+|[^\s]/uy;

/**
 * Cuts a line of code into `[kind, text]` pieces; the kind is "comment", "string", "number", "keyword", "function",
 * "type", "name" or "" for the rest. `state` is what the line before left (null at first).
 */
export function highlightLine(line, language, state = null) {
  if (COLOURLESS.has(language)) return { pieces: line ? [["", line]] : [], state: null };
  const rules = LANGUAGES.get(language) ?? PLAIN;
  const pieces = [];
  const add = (kind, text) => {
    if (pieces.length > 0 && pieces.at(-1)[0] === kind) pieces.at(-1)[1] += text;
    else if (text) pieces.push([kind, text]);
  };
  const take = (expression) => {
    expression.lastIndex = at;
    return expression.exec(line)?.[0];
  };
  let at = 0;
  let text;
  while (at < line.length) {
    if (state) {
      const end = endOf(line, at, state);
      add(state.kind, line.slice(at, end ?? line.length));
      if (end === null) return { pieces, state };
      at = end;
      state = null;
      continue;
    }
    const block = rules.blocks.find(({ start }) => line.startsWith(start, at));
    if (block) {
      add(block.kind, block.start);
      at += block.start.length;
      state = block;
      continue;
    }
    if (
      rules.line.some((mark) => line.startsWith(mark, at)) &&
      (at === 0 || line[at] !== "#" || /\s/.test(line[at - 1]))
    ) {
      add("comment", line.slice(at));
      break;
    }
    if (rules.names && (text = take(rules.names))) add("name", text);
    else if ((text = rules.strings.reduce((found, string) => found ?? take(string), undefined)))
      add("string", text);
    else if (rules.variables && (text = take(rules.variables))) add("name", text);
    else if ((text = take(NUMBER))) add("number", text);
    else if ((text = take(WORD))) add(kindOfWord(text, line, at + text.length, rules), text);
    else add("", (text = take(REST)));
    at += text.length;
  }
  return { pieces, state };
}

function kindOfWord(word, line, after, rules) {
  if (rules === MARKUP || rules === PLAIN) return "";
  if (rules.keywords.has(rules.ignoreCase ? word.toLowerCase() : word)) return "keyword";
  if (line[after] === "(" || (line[after] === "!" && line[after + 1] === "(")) return "function";
  return /^[A-Z]/.test(word) ? "type" : "";
}

function endOf(line, from, { end, kind }) {
  for (let at = from; at < line.length; at += 1) {
    if (kind === "string" && line[at] === "\\") at += 1;
    else if (line.startsWith(end, at)) return at + end.length;
  }
  return null;
}
