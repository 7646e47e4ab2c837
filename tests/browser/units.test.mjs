// What needs no browser: Markdown to a tree, highlighting, server-sent events, and what is sent and exported.

import assert from "node:assert/strict";
import { test } from "node:test";
import { EventDecoder } from "../../crates/serve/studio/api.js";
import { highlightLine } from "../../crates/serve/studio/highlight.js";
import { parse, parseInline, safeAddress } from "../../crates/serve/studio/markdown.js";
import { dialogue, exportLine } from "../../crates/serve/studio/store.js";
import { SAMPLES } from "./mock-server.mjs";

const em = (...children) => ({ tag: "em", children });
const strong = (...children) => ({ tag: "strong", children });
const code = (text) => ({ tag: "code", text });
const kinds = (text) => parse(text).map(({ type }) => type);

test("emphasis follows what stands left and right of the marks", () => {
  assert.deepEqual(parseInline("a *b* c"), ["a ", em("b"), " c"]);
  assert.deepEqual(parseInline("**b**"), [strong("b")]);
  assert.deepEqual(parseInline("***b***"), [em(strong("b"))]);
  assert.deepEqual(parseInline("**a *b* c**"), [strong("a ", em("b"), " c")]);
  assert.deepEqual(parseInline("2 * 3 * 4"), ["2 * 3 * 4"]);
  assert.deepEqual(parseInline("snake_case_name"), ["snake_case_name"]);
  assert.deepEqual(parseInline("_a_ and __b__"), [em("a"), " and ", strong("b")]);
  assert.deepEqual(parseInline("**not closed"), ["**not closed"]);
  assert.deepEqual(parseInline("\\*a\\*"), ["*a*"]);
  assert.deepEqual(parseInline("~~a~~ ~b~"), [{ tag: "del", children: ["a"] }, " ~b~"]);
});

test("marks within code are text", () => {
  assert.deepEqual(parseInline("`a *b* [c](d)`"), [code("a *b* [c](d)")]);
  assert.deepEqual(parseInline("`` a`b ``"), [code("a`b")]);
  assert.deepEqual(parseInline("`open"), ["`open"]);
});

test("what is still open while text comes is shown as if it were closed", () => {
  assert.deepEqual(parseInline("say **bo", true), ["say ", strong("bo")]);
  assert.deepEqual(parseInline("say **", true), ["say "]);
  assert.deepEqual(parseInline("run `car", true), ["run ", code("car")]);
  assert.deepEqual(parseInline("see [the page](https://exa", true), [
    "see ",
    { tag: "link", url: "", children: ["the page"] },
  ]);
});

test("links are found, and only the web and mail may be opened", () => {
  const link = (url, ...children) => ({ tag: "link", url, children });
  assert.deepEqual(parseInline('[a](https://x.org "t")'), [link("https://x.org", "a")]);
  assert.deepEqual(parseInline("see https://x.org/a_(b)."), [
    "see ",
    link("https://x.org/a_(b)", "https://x.org/a_(b)"),
    ".",
  ]);
  assert.deepEqual(parseInline("<mailto:a@x.org>"), [link("mailto:a@x.org", "a@x.org")]);
  assert.deepEqual(parseInline("![p](https://x.org/p.png)"), [
    { tag: "image", url: "https://x.org/p.png", text: "p" },
  ]);
  for (const url of [
    "javascript:alert(1)",
    " JaVaScRiPt:alert(1)",
    "java\nscript:alert(1)",
    "data:text/html,x",
    "file:///etc",
    "/x",
    "x",
  ]) {
    assert.equal(safeAddress(url), null, url);
  }
  assert.equal(safeAddress("https://x.org"), "https://x.org/");
});

test("blocks are told apart", () => {
  assert.deepEqual(
    kinds("# a\n\nb\nc\n\n- d\n- e\n\n1. f\n\n> g\n\n---\n\n```\nh\n```\n\n| i | j |\n|---|---|\n| k | l |"),
    ["heading", "paragraph", "list", "list", "quote", "rule", "code", "table"],
  );
  assert.deepEqual(kinds("text\n- item"), ["paragraph", "list"]);
  assert.deepEqual(kinds("It was in\n1986. A year."), ["paragraph"]);
  assert.deepEqual(kinds("a | b\nno table"), ["paragraph"]);
  assert.deepEqual(kinds("<div>\n<script>x</script>"), ["paragraph"]);
});

test("lists nest and keep what belongs to an item", () => {
  const [list] = parse("1. a\n   - b\n     - c\n\n   more of a\n2. d\n   ```\n   code\n   ```");
  assert.equal(list.items.length, 2);
  assert.deepEqual(
    list.items[0].blocks.map(({ type }) => type),
    ["paragraph", "list", "paragraph"],
  );
  assert.equal(list.items[0].blocks[1].items[0].blocks[1].type, "list");
  assert.equal(list.items[1].blocks[1].text, "code");
  assert.equal(parse("3. a\n4. b")[0].start, 3);
  assert.deepEqual(
    parse("- [x] a\n- [ ] b")[0].items.map(({ checked }) => checked),
    [true, false],
  );
  assert.equal(parse("- a\n\n- b")[0].items.length, 2);
});

test("a fence that is not closed runs to the end", () => {
  assert.deepEqual(parse("```rust\nlet a;\n\n# no heading"), [
    { type: "code", language: "rust", text: "let a;\n\n# no heading", closed: false, line: 0 },
  ]);
  assert.equal(parse("````\n```\n````")[0].text, "```");
});

test("tables know their columns", () => {
  const [table] = parse("| a | b | c |\n|:--|:-:|--:|\n| 1 | 2 \\| 3 |\n");
  assert.deepEqual(table.align, ["left", "center", "right"]);
  assert.deepEqual(table.rows, [[["1"], ["2 | 3"], []]]);
});

// The page parses again only from the second last block on; that must give what parsing everything gives.
test("parsing on from the second last block gives what parsing everything gives", () => {
  for (const [name, text] of Object.entries(SAMPLES)) {
    let blocks = [];
    const step = Math.max(1, Math.floor(text.length / 400));
    for (let end = 0; end <= text.length; end += step) {
      const part = text.slice(0, end);
      const keep = Math.max(0, blocks.length - 2);
      const from = blocks[keep]?.line ?? 0;
      const rest = part.split("\n").slice(from).join("\n");
      blocks = [
        ...blocks.slice(0, keep),
        ...parse(rest).map((block) => ({ ...block, line: block.line + from })),
      ];
      assert.deepEqual(blocks, parse(part), `${name}, ${end} characters`);
    }
  }
});

test("no text takes long to parse", () => {
  const hostile = [
    "*",
    "**a ",
    "[",
    "![",
    "`",
    "` `` ",
    "_a*",
    "<",
    "> ",
    "- ",
    "  - ",
    "|",
    "a|",
    "[a](",
    '[a](b "',
    "~~",
    "\\",
    "https://",
    "# ",
    "#",
    " ",
    "&",
    "*a_ ",
  ];
  const repeated = hostile.map((piece) => piece.repeat(Math.ceil(30_000 / piece.length)));
  // What looks like something up to its very end.
  const almost = [
    ["```", " ", "`"],
    ["", "`", " `x"],
    ["~~~", "~", "`"],
    ["|-", " ", "x"],
    ["|-|-", " |-", "x"],
    ["[x](", " ", "x x"],
    ["[x](y", " ", "x x"],
    ["[x](", "\\(", " x"],
    ["[x](", "()", " x"],
    ["https://a", ".", "b"],
    ["https://a", ")", "."],
    ["https://a(", ".)", "b"],
    ["* ", "* ", "x"],
    ["# a ", "# ", "#x"],
    ["- ", " ", "x"],
    ["&", "a", " "],
    ["**", " *", "a"],
  ].map(([first, piece, last]) => first + piece.repeat(30_000) + last);
  for (const text of [...repeated, ...almost]) {
    const piece = `${text.slice(0, 12)}…${text.slice(-4)}`;
    const start = performance.now();
    parse(text, { open: true });
    parse(`a | b\n${text}\n\n| a |\n|---|\n| ${text}`);
    // Milliseconds where time is linear, minutes where it is not: the bound leaves room for a busy machine.
    assert.ok(
      performance.now() - start < 2000,
      `${JSON.stringify(piece)} took ${performance.now() - start} ms`,
    );
  }
});

test("highlighting keeps the text and carries comments and strings over lines", () => {
  const lines = SAMPLES.code.split("\n");
  for (const language of [
    "python",
    "rust",
    "js",
    "c",
    "bash",
    "sql",
    "json",
    "toml",
    "css",
    "html",
    "unknown",
    "",
  ]) {
    let state = null;
    for (const line of lines) {
      const highlighted = highlightLine(line, language, state);
      assert.equal(highlighted.pieces.map(([, piece]) => piece).join(""), line, language);
      state = highlighted.state;
    }
  }
  const first = highlightLine("let a = 1; /* begins", "rust");
  assert.deepEqual(first.pieces[0], ["keyword", "let"]);
  assert.deepEqual(highlightLine("ends */ fn", "rust", first.state).pieces, [
    ["comment", "ends */"],
    ["", " "],
    ["keyword", "fn"],
  ]);
  assert.deepEqual(highlightLine("f(&'a x, 'b')", "rust").pieces.at(-2), ["string", "'b'"]);
});

test("events are read wherever the network cuts them", () => {
  const stream =
    ': hello\r\n\r\ndata: {"a":"ü🌊"}\n\nevent: x\ndata: one\ndata: two\n\ndata:three\r\n\r\ndata: not ended';
  const bytes = new TextEncoder().encode(stream);
  for (let size = 1; size <= bytes.length; size += 1) {
    const decoder = new EventDecoder();
    const found = [];
    for (let at = 0; at < bytes.length; at += size)
      found.push(...decoder.decode(bytes.subarray(at, at + size)));
    assert.deepEqual(found, ['{"a":"ü🌊"}', "one\ntwo", "three"], `pieces of ${size} bytes`);
  }
});

const user = (content) => ({ role: "user", content });
const assistant = (content) => ({ role: "assistant", content, model: "m", state: "done" });

test("the model reads answered turns and the last question, in turns", () => {
  const messages = [user("a"), assistant("b"), user("lost"), assistant(""), user("c"), assistant("")];
  assert.deepEqual(dialogue({ system: " ", messages }), [
    user("a"),
    { role: "assistant", content: "b" },
    user("c"),
  ]);
  assert.deepEqual(dialogue({ system: "s", messages: [user("a")] }), [
    { role: "system", content: "s" },
    user("a"),
  ]);
});

test("an export is one line of the dialogues format", () => {
  const messages = [user("a"), assistant("b"), user("c"), assistant("")];
  const expected = {
    messages: [{ role: "system", content: "s" }, user("a"), { role: "assistant", content: "b" }],
  };
  const line = exportLine({ system: "s", messages });
  assert.ok(line.endsWith("}\n"));
  assert.deepEqual(JSON.parse(line), expected);
  assert.equal(exportLine({ system: "s", messages: [user("c"), assistant("")] }), null);
});
