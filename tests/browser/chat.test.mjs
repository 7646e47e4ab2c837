// The chat page in a real browser. The main path runs against the server at STRATA_URL where that is set (any model:
// nothing depends on what it says), else against the mock; everything that needs a server's bad day uses the mock.
// Screenshots go to STRATA_ARTIFACTS where that is set; STRATA_CHROMIUM names another browser than Debian's.

import assert from "node:assert/strict";
import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import { after, afterEach, before, test } from "node:test";
import { chromium } from "playwright-core";
import { startMock, until } from "./mock-server.mjs";

const ARTIFACTS = process.env.STRATA_ARTIFACTS;
const REAL = process.env.STRATA_URL?.replace(/\/$/, "");
const PHONE = { viewport: { width: 390, height: 844 }, deviceScaleFactor: 2, hasTouch: true, isMobile: true };
// A tiny model on a busy machine needs a while for a long answer.
const PATIENCE = { timeout: 60_000 };

let browser;
let mock;
let opened = [];

before(async () => {
  if (ARTIFACTS) await mkdir(ARTIFACTS, { recursive: true });
  mock = await startMock();
  // A browser launched this way starts with a new, empty profile and removes it at the end.
  browser = await chromium.launch({
    executablePath: process.env.STRATA_CHROMIUM ?? "/usr/bin/chromium",
    args: [
      "--headless",
      "--no-sandbox",
      "--disable-gpu",
      "--disable-quic",
      "--no-first-run",
      "--disable-background-networking",
      "--disable-component-update",
      "--disable-sync",
    ],
  });
});

after(async () => {
  await browser?.close();
  await mock?.stop();
});

afterEach(async () => {
  Object.assign(mock, { pace: 12, key: null, models: ["demo-dialogue", "demo-command"], requests: [] });
  mock.busy.clear();
  const pages = opened;
  opened = [];
  for (const { context, foreign, complaints } of pages) {
    await context.close();
    assert.deepEqual(foreign, [], "requests that left the origin");
    assert.deepEqual(complaints, [], "complaints in the console");
  }
});

/** Opens the page in a fresh profile; whatever it asks of others and complains about fails the test. */
async function openPage({ url = mock.url, options = {}, expected = [], prepare } = {}) {
  const context = await browser.newContext({
    viewport: { width: 1280, height: 800 },
    acceptDownloads: true,
    ...options,
  });
  const page = await context.newPage();
  const foreign = [];
  const complaints = [];
  page.on("request", (request) => {
    const address = request.url();
    if (!address.startsWith(`${url}/`) && !address.startsWith(`blob:${url}/`)) foreign.push(address);
  });
  page.on("console", (message) => {
    const fine = expected.some((pattern) => pattern.test(message.text()));
    if (["error", "warning"].includes(message.type()) && !fine) complaints.push(message.text());
  });
  page.on("pageerror", (error) => complaints.push(String(error)));
  opened.push({ context, foreign, complaints });
  await prepare?.(page);
  await page.goto(`${url}/`);
  return page;
}

const input = (page) => page.getByRole("textbox", { name: "Message", exact: true });
const messages = (page) =>
  page
    .getByTestId("messages")
    .getByRole("listitem")
    .filter({ has: page.getByRole("heading") });
const answers = (page) => page.locator(".answer");
const questions = (page) => page.locator(".question .bubble");
const stopButton = (page) => page.getByRole("button", { name: "Stop", exact: true });
const sidebar = (page) => page.getByRole("navigation", { name: "Earlier conversations" });

async function ready(page) {
  await page.locator("#model:not([disabled])").waitFor(PATIENCE);
}

async function say(page, text) {
  await input(page).fill(text);
  await input(page).press("Enter");
}

/** Waits until the last answer has ended in whatever way. */
async function ended(page) {
  await page.locator(".answer:last-child[aria-busy=false]").waitFor(PATIENCE);
}

async function ask(page, text) {
  await say(page, text);
  await ended(page);
}

/** Has an answer, then waits for another that never comes; gives the text of the first. */
async function waitForAnother(page) {
  await ready(page);
  await ask(page, "Hello");
  const before = await textOf(page);
  await page.route("**/v1/chat/completions", () => {});
  await page.getByRole("button", { name: "Answer again" }).click();
  await page.locator(".answer[data-state=waiting]").waitFor();
  return before;
}

async function shot(page, name) {
  if (ARTIFACTS) await page.screenshot({ path: join(ARTIFACTS, `${name}.png`) });
}

const textOf = (page) => answers(page).last().locator(".markdown").textContent();

// ---- The main path: any server ----

test("a person asks and sees the answer being written", async () => {
  const page = await openPage({ url: REAL ?? mock.url });
  await ready(page);
  await shot(page, "empty");
  await page.evaluate(() => {
    window.lengths = new Set();
    new MutationObserver(() => {
      const length = document.querySelector(".answer .markdown")?.textContent.length ?? 0;
      if (length > 0) window.lengths.add(length);
    }).observe(document.getElementById("messages"), { subtree: true, childList: true, characterData: true });
  });
  await page.getByRole("button", { name: "What is the opposite of hot?" }).click();
  await ended(page);
  assert.equal(await questions(page).textContent(), "What is the opposite of hot?");
  const [text, facts] = [await textOf(page), await page.locator(".facts").textContent()];
  const steps = await page.evaluate(() => window.lengths.size);
  // A real model may say one token, or end at once; the mock's answer has 15.
  if (REAL && text.trim() === "") assert.match(facts, /empty answer/);
  else {
    assert.match(facts, /\d+ tokens?.*first after/);
    assert.ok(steps >= (REAL ? 1 : 4), `the answer came in ${steps} steps`);
  }
  await shot(page, "answer");
});

test("a reload finds the conversation, and another question goes on with it", async () => {
  const page = await openPage({ url: REAL ?? mock.url });
  await ready(page);
  await ask(page, "Name the kind of each thing: robin, oak");
  const answer = await textOf(page);
  const requests = [];
  page.on("request", (request) => request.postData() && requests.push(JSON.parse(request.postData())));
  await page.reload();
  await ready(page);
  assert.equal(await questions(page).textContent(), "Name the kind of each thing: robin, oak");
  assert.equal(await textOf(page), answer);
  await ask(page, "And of these: pike, elm");
  // A turn whose answer was empty is not sent.
  const roles = answer === "" ? ["user"] : ["user", "assistant", "user"];
  assert.deepEqual(
    requests.at(-1).messages.map(({ role }) => role),
    roles,
  );
  assert.equal(await messages(page).count(), 4);
});

test("a person edits an earlier message, undoes it, and retries the last answer", async () => {
  const page = await openPage({ url: REAL ?? mock.url });
  await ready(page);
  await ask(page, "first");
  await ask(page, "second");
  await questions(page).first().hover();
  await page.getByRole("button", { name: "Edit and ask again" }).first().click();
  await page.getByRole("textbox", { name: "Edit your message" }).fill("changed");
  await page.getByRole("button", { name: "Ask again", exact: true }).click();
  await ended(page);
  assert.deepEqual(await questions(page).allTextContents(), ["changed"]);
  await page.getByRole("button", { name: "Undo" }).click();
  assert.deepEqual(await questions(page).allTextContents(), ["first", "second"]);
  await page.getByRole("button", { name: "Answer again" }).click();
  await ended(page);
  assert.equal(await messages(page).count(), 4);
});

test("everything can be done by keyboard alone", async () => {
  const page = await openPage({ url: REAL ?? mock.url });
  await ready(page);
  const press = (...keys) =>
    keys.reduce((last, key) => last.then(() => page.keyboard.press(key)), Promise.resolve());
  const focused = () =>
    page.evaluate(() => document.activeElement.getAttribute("aria-label") ?? document.activeElement.id);
  assert.equal(await focused(), "Message");
  await page.keyboard.type("one line");
  await press("Shift+Enter");
  await page.keyboard.type("and another");
  await press("Enter");
  await ended(page);
  assert.equal(await questions(page).textContent(), "one line\nand another");
  assert.equal(await focused(), "Message");
  await press("ArrowUp");
  assert.equal(await focused(), "Edit your message");
  await press("Escape");
  assert.equal(await focused(), "Edit and ask again");
  await press("Control+k");
  assert.equal(await messages(page).count(), 0);
  assert.equal(await focused(), "Message");
  // Back to the start of the page, where a link skips to the field, and forward to the list of conversations.
  const atSkip = () =>
    page.evaluate(() => document.activeElement.textContent === "Skip to the message field");
  for (let steps = 0; steps < 20 && !(await atSkip()); steps += 1) await press("Shift+Tab");
  assert.ok(await atSkip());
  for (let steps = 0; steps < 20 && !(await focused()).startsWith("More for"); steps += 1) await press("Tab");
  await press("Enter", "Enter");
  await page.keyboard.type("by hand");
  await press("Enter");
  assert.equal(await sidebar(page).getByRole("link").textContent(), "by hand");
  await press("Enter");
  await messages(page).first().waitFor();
  assert.equal(await messages(page).count(), 2);
});

test("it fits a phone, where the list of conversations is a drawer", async () => {
  for (const [name, width, height] of [
    ["phone", 390, 844],
    ["phone-small", 360, 640],
  ]) {
    const page = await openPage({
      url: REAL ?? mock.url,
      options: { ...PHONE, viewport: { width, height } },
    });
    await ready(page);
    await shot(page, `${name}-empty`);
    await ask(page, "Write the plural of each word: quilt, man");
    await shot(page, name);
    const overflow = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
    assert.equal(overflow, 0, "nothing sticks out at the side");
    const bottom = await input(page).evaluate((field) => field.getBoundingClientRect().bottom);
    assert.ok(bottom <= height, "the message field is on the screen");
    assert.ok(!(await sidebar(page).isVisible()));
    await page.getByRole("button", { name: "Conversations" }).tap();
    await sidebar(page).getByRole("link").waitFor();
    await page.waitForTimeout(300);
    await shot(page, `${name}-drawer`);
    await page.mouse.click(width - 10, 300);
    await page.waitForFunction(() => document.getElementById("sidebar").inert);
  }
});

test("the dark theme follows the system, and the switch is remembered", async () => {
  const page = await openPage({ url: REAL ?? mock.url, options: { colorScheme: "dark" } });
  await ready(page);
  await ask(page, "Say yes.");
  await shot(page, "dark");
  const brightness = () =>
    page.evaluate(() => {
      const canvas = document.createElement("canvas").getContext("2d");
      canvas.fillStyle = getComputedStyle(document.body).backgroundColor;
      canvas.fillRect(0, 0, 1, 1);
      return canvas.getImageData(0, 0, 1, 1).data[0];
    });
  assert.ok((await brightness()) < 60);
  await page.getByRole("button", { name: "Light theme" }).click();
  assert.ok((await brightness()) > 200);
  await page.reload();
  assert.ok((await brightness()) > 200);
});

test("the settings of a conversation are sent with it and outlive a reload", async () => {
  const page = await openPage({ url: REAL ?? mock.url });
  await ready(page);
  const bodies = [];
  page.on("request", (request) => request.postData() && bodies.push(JSON.parse(request.postData())));
  await page.getByRole("button", { name: "Settings of this conversation" }).click();
  await page.getByLabel("System prompt").fill("Answer in one word.");
  await page.getByLabel("Most tokens").fill("5");
  await page.getByLabel("Seed").fill("7");
  await page.getByLabel("Temperature").fill("0.2");
  await shot(page, "settings");
  await page.getByRole("button", { name: "Close settings" }).click();
  await ask(page, "What is the opposite of hot?");
  await page.reload();
  await ready(page);
  await ask(page, "And of tall?");
  for (const body of bodies) {
    assert.deepEqual(body.messages[0], { role: "system", content: "Answer in one word." });
    const { max_tokens, seed, temperature, stream } = body;
    assert.deepEqual(
      { max_tokens, seed, temperature, stream },
      { max_tokens: 5, seed: 7, temperature: 0.2, stream: true },
    );
  }
  assert.equal(bodies.length, 2);
});

// ---- Stopping, and bad days: the mock ----

test("stopping midway keeps what came and the server is told", async () => {
  const page = await openPage();
  await ready(page);
  const aborted = mock.aborted;
  await say(page, "slow");
  await page.getByText("word5").waitFor();
  await shot(page, "writing");
  await stopButton(page).click();
  await ended(page);
  const text = await textOf(page);
  assert.match(text, /word0 word1 word2/);
  await page.waitForTimeout(200);
  assert.equal(await textOf(page), text, "nothing came after the stop");
  // The page says that it stopped before the server has seen the connection close.
  await until(() => mock.aborted > aborted);
  assert.equal(mock.aborted, aborted + 1, "the server saw the connection close");
  assert.match(await page.locator(".facts").textContent(), /stopped by you/);
  await say(page, "slow");
  await page.getByText("word5").last().waitFor();
  await page.keyboard.press("Escape");
  await ended(page);
  await until(() => mock.aborted > aborted + 1);
  assert.equal(mock.aborted, aborted + 2);
});

test("an answer goes on while another conversation is open", async () => {
  const page = await openPage();
  await ready(page);
  await say(page, "long");
  await page.keyboard.press("Control+k");
  await ask(page, "hello");
  await sidebar(page).getByRole("link", { name: "long" }).click();
  await page.locator(".answer:last-child .markdown h4").nth(2).waitFor(PATIENCE);
  await page.keyboard.press("Escape");
  await ended(page);
});

test("the view follows the answer only while the person is at its end", async () => {
  const page = await openPage();
  await ready(page);
  await say(page, "long");
  await page.getByText("Part 6", { exact: true }).waitFor();
  const scroller = page.locator("#scroller");
  const distance = () => scroller.evaluate((node) => node.scrollHeight - node.clientHeight - node.scrollTop);
  assert.ok((await distance()) < 100, "it follows");
  await scroller.hover();
  await page.mouse.wheel(0, -300);
  await page.getByText("Part 10", { exact: true }).waitFor();
  assert.ok((await distance()) > 300, "it stays where the person looks");
  await page.getByRole("button", { name: "To the latest message" }).click();
  await page.waitForFunction(() => {
    const node = document.getElementById("scroller");
    return node.scrollHeight - node.clientHeight - node.scrollTop < 100;
  });
  await page.keyboard.press("Escape");
});

test("Markdown is shown as it should be", async () => {
  const page = await openPage();
  await ready(page);
  for (const [kind, selector] of [
    ["markdown", "ol ul li"],
    ["code", "figure.code pre .code-keyword"],
    ["table", "td.align-right strong"],
  ]) {
    await ask(page, kind);
    assert.ok((await answers(page).last().locator(selector).count()) > 0, `${kind} has ${selector}`);
    await shot(page, kind);
  }
  await page.emulateMedia({ colorScheme: "dark" });
  await page.locator("figure.code").first().scrollIntoViewIfNeeded();
  await shot(page, "code-dark");
});

test("an answer and a block of code can be copied", async () => {
  const page = await openPage({ options: { permissions: ["clipboard-read", "clipboard-write"] } });
  await ready(page);
  await ask(page, "code");
  const clipboard = () => page.evaluate(() => navigator.clipboard.readText());
  await page.getByRole("button", { name: "Copy this code" }).nth(1).click();
  await page.locator(".copy-code.copied").waitFor();
  const copied = await clipboard();
  assert.ok(
    copied.startsWith("use std::collections::HashMap;\n\n///") && copied.endsWith("counts\n}"),
    copied,
  );
  await page.getByRole("button", { name: "Copy answer" }).click();
  await page.getByRole("button", { name: "Copied" }).last().waitFor();
  assert.match(await clipboard(), /^Here is a function[^]*```rust\nuse/);
});

test("what a model writes is never run, loaded or followed", async () => {
  const page = await openPage();
  await ready(page);
  await ask(page, "inject");
  await ask(page, '<img src=x onerror="window.hacked = 8">');
  await page.reload();
  await ready(page);
  assert.equal(await page.evaluate(() => window.hacked), undefined);
  assert.equal(
    await page.locator(".messages").locator("img, script, iframe, b, [onerror], [onclick]").count(),
    0,
  );
  const links = await page
    .locator(".markdown a")
    .evaluateAll((nodes) => nodes.map(({ href, rel, target }) => ({ href, rel, target })));
  assert.deepEqual(
    links.map(({ href }) => href),
    ["https://remote.example/pixel.png", "https://example.org/", "https://remote.example/"],
  );
  assert.ok(links.every(({ rel, target }) => rel === "noopener noreferrer" && target === "_blank"));
});

test("characters and events may be cut anywhere", async () => {
  const page = await openPage();
  await ready(page);
  await ask(page, "split");
  assert.equal(await textOf(page), "Grüße 🌊 über alles");
});

test("a server that wants an API key gets one, and the answer follows", async () => {
  mock.key = "secret";
  const page = await openPage({ expected: [/401/] });
  const field = page.getByLabel("API key", { exact: true });
  await field.fill("wrong");
  await field.press("Enter");
  await page.getByText("did not accept").waitFor();
  await shot(page, "key");
  await field.fill("secret");
  await field.press("Enter");
  await ready(page);
  await ask(page, "hello");
  assert.match(await textOf(page), /You said: hello/);
  assert.equal(
    await page.evaluate(() => localStorage.getItem("strata.key")),
    null,
    "not kept unless asked to",
  );
  mock.key = "another";
  await say(page, "again");
  await field.fill("another");
  await page.getByLabel("Remember on this device").check();
  await field.press("Enter");
  await page.getByText("You said: again").waitFor();
  assert.equal(await page.evaluate(() => localStorage.getItem("strata.key")), "another");
});

test("a busy server is asked again, unless the person has enough", async () => {
  const page = await openPage({ expected: [/429/] });
  await ready(page);
  await say(page, "busy 1");
  await page.getByText(/The server is busy\. Trying again in \d s/).waitFor();
  await shot(page, "busy");
  await ended(page);
  assert.match(await textOf(page), /You said: busy 1/);
  await say(page, "busy 9");
  await page.getByRole("button", { name: "Cancel" }).click();
  await ended(page);
  assert.match(await page.locator(".facts").last().textContent(), /stopped/);
  assert.equal(mock.requests.length, 3);
});

test("when the answer breaks off, what came is kept and can be asked for again", async () => {
  const page = await openPage({ expected: [/ERR_INCOMPLETE_CHUNKED_ENCODING/, /400/] });
  await ready(page);
  for (const [kind, reason] of [
    ["cut", /connection/],
    ["midway", /worker stopped/],
  ]) {
    await ask(page, kind);
    assert.match(await textOf(page), /You said/);
    const alert = page.getByRole("alert").last();
    assert.match(await alert.textContent(), reason);
    assert.match(await alert.textContent(), /What came is kept/);
    await shot(page, `error-${kind}`);
  }
  await ask(page, "refuse");
  assert.match(await page.getByRole("alert").last().textContent(), /reads 512/);
  const before = mock.requests.length;
  await page.getByRole("button", { name: "Retry" }).click();
  await ended(page);
  assert.equal(mock.requests.length, before + 1);
});

test("an answer that was cut off by closing the page is kept", async () => {
  const page = await openPage();
  await ready(page);
  await say(page, "slow");
  await page.getByText("word9").waitFor();
  await page.reload();
  await ready(page);
  assert.match(await textOf(page), /word9/);
  await page.getByText("cut off when the page closed").waitFor();
});

test("an answer that was stopped at the most tokens says so", async () => {
  const page = await openPage();
  await ready(page);
  await ask(page, "length");
  assert.match(await page.locator(".facts").textContent(), /cut off at the token limit/);
});

test("without models the page explains how to make one, and finds it when it is there", async () => {
  mock.models = [];
  const page = await openPage();
  await page.getByText("strata demo").waitFor();
  await shot(page, "no-models");
  mock.models = ["house"];
  await page.getByRole("button", { name: "Look again" }).click();
  await ready(page);
  assert.equal(await page.locator("#model").inputValue(), "house");
});

test("without a server the page says so and finds it when it is back", async () => {
  const page = await openPage({
    expected: [/ERR_FAILED/],
    prepare: (fresh) => fresh.route("**/v1/models", (route) => route.abort()),
  });
  await page.getByText("The server is not answering").waitFor();
  await shot(page, "no-server");
  await page.unroute("**/v1/models");
  await ready(page);
});

test("conversations are searched, renamed, exported, deleted and brought back", async () => {
  const page = await openPage();
  await ready(page);
  for (const text of ["apples", "pears", "plums"]) {
    await ask(page, text);
    await page.keyboard.press("Control+k");
  }
  const links = sidebar(page).getByRole("link");
  assert.deepEqual(await links.allTextContents(), ["plums", "pears", "apples"]);
  const choose = async (title, action) => {
    await links.filter({ hasText: title }).hover();
    await page.getByRole("button", { name: `More for “${title}”` }).click();
    if (title === "pears") await shot(page, "menu");
    await page.getByRole("menuitem", { name: action }).click();
  };
  await choose("pears", "Rename");
  await page.getByRole("textbox", { name: "Name of the conversation" }).fill("stone fruit");
  await page.keyboard.press("Enter");
  assert.deepEqual(await links.allTextContents(), ["plums", "stone fruit", "apples"]);
  await page.getByRole("searchbox").fill("SAID: PEARS");
  assert.deepEqual(await links.allTextContents(), ["stone fruit"]);
  await page.getByRole("searchbox").fill("");
  const download = page.waitForEvent("download");
  await choose("stone fruit", "Export");
  const file = await download;
  assert.equal(file.suggestedFilename(), "stone-fruit.jsonl");
  const parts = [];
  for await (const part of await file.createReadStream()) parts.push(part);
  assert.deepEqual(JSON.parse(Buffer.concat(parts).toString("utf8")), {
    messages: [
      { role: "user", content: "pears" },
      { role: "assistant", content: "You said: pears. That is all there is to say." },
    ],
  });
  await choose("apples", "Delete");
  assert.deepEqual(await links.allTextContents(), ["plums", "stone fruit"]);
  await page.getByRole("button", { name: "Undo" }).click();
  assert.deepEqual(await links.allTextContents(), ["plums", "stone fruit", "apples"]);
  await choose("plums", "Delete");
  await page.reload();
  await ready(page);
  assert.deepEqual(await links.allTextContents(), ["stone fruit", "apples"]);
});

test("where the browser keeps nothing the page works and says so", async () => {
  const blocked = await openPage({
    prepare: (page) =>
      page.addInitScript(() => {
        const refuse = {
          get: () => {
            throw new DOMException("denied", "SecurityError");
          },
        };
        Object.defineProperty(window, "localStorage", refuse);
        Object.defineProperty(window, "sessionStorage", refuse);
      }),
  });
  await ready(blocked);
  await blocked.locator(".sidebar-foot").getByText("keeps nothing for this page").waitFor();
  await ask(blocked, "hello");
  assert.match(await textOf(blocked), /You said: hello/);
  const full = await openPage({
    prepare: (page) =>
      page.addInitScript(() => {
        Storage.prototype.setItem = () => {
          throw new DOMException("full", "QuotaExceededError");
        };
      }),
  });
  await ready(full);
  await ask(full, "hello");
  assert.match(await textOf(full), /You said: hello/);
  await full.locator(".sidebar-foot").getByText("storage is full").waitFor();
});

test("a character that is still being composed does not send", async () => {
  const page = await openPage();
  await ready(page);
  await input(page).fill("か");
  await input(page).dispatchEvent("keydown", { key: "Enter", isComposing: true, bubbles: true });
  await input(page).dispatchEvent("keydown", { key: "Enter", keyCode: 229, bubbles: true });
  assert.equal(await messages(page).count(), 0);
  await input(page).press("Enter");
  await ended(page);
});

test("a conversation of 200 messages opens and goes on without delay", async () => {
  mock.pace = 0;
  const page = await openPage();
  await page.evaluate(() => {
    const content = `${"Some **text** with `code`.\n\n- one\n- two\n\n".repeat(8)}\`\`\`js\nconst a = 1; // one\n\`\`\``;
    const messages = Array.from({ length: 200 }, (_, index) =>
      index % 2
        ? { role: "assistant", content, model: "m", state: "done" }
        : { role: "user", content: `question ${index}` },
    );
    localStorage.setItem(
      "strata.conversation.large",
      JSON.stringify({ id: "large", title: "large", created: 1, updated: 1, messages }),
    );
  });
  await page.reload();
  await ready(page);
  const opened = await page.evaluate(
    () =>
      new Promise((resolve) => {
        const start = performance.now();
        document.querySelector('a[href="#c=large"]').click();
        const look = () => {
          if (document.querySelectorAll(".message").length < 200) return requestAnimationFrame(look);
          requestAnimationFrame(() => setTimeout(() => resolve(performance.now() - start)));
        };
        look();
      }),
  );
  const distance = await page
    .locator("#scroller")
    .evaluate((node) => node.scrollHeight - node.clientHeight - node.scrollTop);
  assert.ok(distance < 2, "it opens at the end");
  // A tenth of a second on an idle machine: the bounds leave room for a busy one.
  assert.ok(opened < 2000, `opening took ${Math.round(opened)} ms`);
  await page.evaluate(() => {
    window.longest = 0;
    new PerformanceObserver((list) =>
      list.getEntries().forEach(({ duration }) => {
        window.longest = Math.max(window.longest, duration);
      }),
    ).observe({ entryTypes: ["longtask"] });
  });
  await ask(page, "long");
  const longest = await page.evaluate(() => window.longest);
  assert.ok(longest < 500, `the page stood still for ${Math.round(longest)} ms`);
  console.log(
    `# 200 messages opened in ${Math.round(opened)} ms; longest task while answering ${Math.round(longest)} ms`,
  );
});

test("headings, names and contrast are in order", async () => {
  const page = await openPage();
  await ready(page);
  await ask(page, "markdown");
  const unnamed = await page.evaluate(() =>
    [...document.querySelectorAll("button, a, input, select, textarea")]
      .filter((node) => !(node.getAttribute("aria-label") || node.textContent.trim() || node.labels?.length))
      .map((node) => node.outerHTML),
  );
  assert.deepEqual(unnamed, []);
  for (const colorScheme of ["light", "dark"]) {
    await page.emulateMedia({ colorScheme });
    const poor = await page.evaluate(() => {
      const canvas = Object.assign(document.createElement("canvas"), { width: 1, height: 1 }).getContext(
        "2d",
        { willReadFrequently: true },
      );
      const style = getComputedStyle(document.documentElement);
      const probe = document.body.appendChild(document.createElement("i"));
      const luminance = (name) => {
        probe.style.color = style.getPropertyValue(`--${name}`);
        canvas.fillStyle = getComputedStyle(probe).color;
        canvas.fillRect(0, 0, 1, 1);
        const [red, green, blue] = [...canvas.getImageData(0, 0, 1, 1).data]
          .slice(0, 3)
          .map((value) => value / 255)
          .map((value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4));
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
      };
      const ratio = (one, other) => {
        const [dark, light] = [luminance(one), luminance(other)].sort((a, b) => a - b);
        return (light + 0.05) / (dark + 0.05);
      };
      const pairs = [
        ["on-accent", "accent"],
        ["danger", "danger-soft"],
        ["ink", "accent-soft"],
        ["ink", "danger-soft"],
        ["accent", "accent-soft"],
      ];
      for (const ink of ["ink", "ink-soft", "ink-faint", "accent", "danger"]) {
        for (const ground of ["paper", "side", "raised"]) pairs.push([ink, ground]);
      }
      for (const ink of ["ink", "ink-soft"]) pairs.push([ink, "soft"]);
      for (const kind of ["keyword", "string", "number", "function", "type"])
        pairs.push([`code-${kind}`, "side"]);
      // 4.5 is what WCAG asks of text at level AA.
      return pairs
        .map((pair) => [...pair, ratio(...pair).toFixed(2)])
        .filter(([, , value]) => !(value >= 4.5));
    });
    assert.deepEqual(poor, [], colorScheme);
  }
});

test("the link to the message field leads there, and not out of the conversation", async () => {
  const page = await openPage();
  await ready(page);
  await ask(page, "Hello");
  await page.locator(".skip").focus();
  await page.keyboard.press("Enter");
  await page.waitForFunction(() => document.activeElement.id === "input");
  assert.match(page.url(), /#c=/);
  assert.equal(await messages(page).count(), 2);
});

test("another answer that does not come leaves the one before", async () => {
  const page = await openPage({ expected: [/Failed to load resource/] });
  await ready(page);
  await ask(page, "Hello");
  const before = await answers(page).innerText();
  await page.route("**/v1/chat/completions", (route) => route.abort());
  await page.getByRole("button", { name: "Answer again" }).click();
  await page.getByText("the one before stays").waitFor();
  assert.equal(await answers(page).innerText(), before);
  await page.reload();
  await ready(page);
  assert.equal(await answers(page).innerText(), before);
});

test("while one tab writes, another neither calls it cut off nor loses what is asked there", async () => {
  const page = await openPage();
  await ready(page);
  await input(page).fill("slow");
  await input(page).press("Enter");
  await page.locator(".answer[data-state=writing]").waitFor();
  const other = await page.context().newPage();
  await page.waitForFunction(() => Object.values({ ...localStorage }).some((kept) => kept.includes('"writing"')));
  await other.goto(page.url());
  await ready(other);
  await other.locator(".answer[data-state=writing]").waitFor();
  await input(other).fill("A question in the other tab");
  await input(other).press("Enter");
  await other.getByText("Another tab is writing").waitFor();
  await other.waitForTimeout(1500);
  assert.equal(await input(other).inputValue(), "A question in the other tab");
  assert.equal(await other.locator(".banner").count(), 0);
  // A message that is being changed there stays, and the whole answer is there when that is done.
  await other.locator(".question").hover();
  await other.getByRole("button", { name: "Edit and ask again" }).click();
  await other.locator(".editor textarea").fill("Half an edit");
  await other.waitForTimeout(1500);
  await other.locator(".editor textarea").press("Enter");
  await other.getByText("Another tab is writing").last().waitFor();
  await stopButton(page).click();
  await page.locator(".answer[data-state=stopped]").waitFor();
  const whole = await textOf(page);
  await other.waitForTimeout(300);
  assert.equal(await other.locator(".editor textarea").inputValue(), "Half an edit");
  await other.locator(".editor textarea").press("Escape");
  await other.locator(".answer[data-state=stopped]").waitFor();
  assert.equal(await textOf(other), whole);
  await input(other).press("Enter");
  await other.locator(".answer[data-state=done]").waitFor();
  assert.deepEqual(await questions(other).allInnerTexts(), ["slow", "A question in the other tab"]);
  await page.locator(".answer[data-state=done]").waitFor();
  assert.equal(await answers(page).first().locator(".markdown").textContent(), whole);
});

test("settings and names changed in another tab go with the answer that is being written, and a deletion ends it", async () => {
  const page = await openPage();
  await ready(page);
  await say(page, "slow");
  await page.getByText("word9").waitFor();
  const other = await page.context().newPage();
  await other.goto(page.url());
  await ready(other);
  await other.getByRole("button", { name: "Settings" }).click();
  await other.locator("#system").pressSequentially("Be brief.", { delay: 60 });
  await other.waitForTimeout(1500);
  assert.equal(await other.locator("#system").inputValue(), "Be brief.");
  await stopButton(page).click();
  await ended(page);
  const whole = await textOf(page);
  for (const tab of [page, other]) {
    await tab.reload();
    await ready(tab);
    assert.equal(await textOf(tab), whole);
    assert.equal(await tab.locator("#system").inputValue(), "Be brief.");
  }
  await say(page, "slow");
  await page.getByText("word3").last().waitFor();
  await other.getByRole("button", { name: /^More for/ }).first().click();
  await other.getByRole("menuitem", { name: "Delete" }).click();
  await page.getByText("deleted in another tab").waitFor();
  await page.waitForTimeout(1500);
  const kept = await page.evaluate(() => Object.keys(localStorage).filter((key) => key.includes("conversation")));
  assert.deepEqual(kept, []);
});

test("a conversation that is deleted while it is answered can be brought back and gone on with", async () => {
  const page = await openPage();
  await ready(page);
  await say(page, "slow");
  await page.getByText("word3").waitFor();
  await page.getByRole("button", { name: /^More for/ }).first().click();
  await page.getByRole("menuitem", { name: "Delete" }).click();
  await page.getByRole("button", { name: "Undo" }).click();
  await page.getByText("word3").waitFor();
  await ask(page, "Hello");
  assert.match(await textOf(page), /Hello/);
});

test("an edit while another answer is waited for can be undone to the answer there was", async () => {
  const page = await openPage();
  const before = await waitForAnother(page);
  await page.locator(".question").hover();
  await page.getByRole("button", { name: "Edit and ask again" }).click();
  await page.locator(".editor textarea").fill("Hello?");
  await page.locator(".editor textarea").press("Enter");
  await page.getByRole("button", { name: "Undo" }).click();
  await page.waitForFunction((text) => document.querySelector(".answer .markdown").textContent === text, before);
  assert.equal(await questions(page).innerText(), "Hello");
});

test("another answer can be left for good while it is waited for", async () => {
  const page = await openPage();
  const before = await waitForAnother(page);
  await page.reload();
  await ready(page);
  assert.equal(await textOf(page), before);
});

test("what was typed and not sent outlives other conversations, an example and a reload", async () => {
  const page = await openPage();
  await ready(page);
  await input(page).fill("Half a question");
  await page.locator(".example").first().click();
  await page.locator(".answer[data-state=done]").waitFor();
  assert.equal(await input(page).inputValue(), "Half a question");
  await page.reload();
  await ready(page);
  assert.equal(await input(page).inputValue(), "Half a question");
  await page.getByRole("button", { name: "New conversation" }).first().click();
  await input(page).fill("For a new one");
  await page.locator("#conversations a").first().click();
  await page.waitForFunction(() => document.getElementById("input").value === "Half a question");
  await page.getByRole("button", { name: "New conversation" }).first().click();
  assert.equal(await input(page).inputValue(), "For a new one");
  await page.goto(page.url().split("#")[0]);
  await ready(page);
  assert.equal(await input(page).inputValue(), "For a new one");
});

test("a text that is too long is explained, and can be changed", async () => {
  const page = await openPage({ expected: [/Failed to load resource/] });
  await ready(page);
  const error = { message: "messages: it has 604 tokens", code: "context_length_exceeded" };
  await page.route("**/v1/chat/completions", (route) =>
    route.fulfill({ status: 400, contentType: "application/json", body: JSON.stringify({ error }) }),
  );
  await input(page).fill("A long text");
  await input(page).press("Enter");
  await page.getByText("more than the model can read").waitFor();
  await page.locator(".banner").getByRole("button", { name: "Edit" }).click();
  assert.equal(await page.locator(".editor textarea").inputValue(), "A long text");
});

test("a name that is ended by a click elsewhere leaves the focus there", async () => {
  const page = await openPage();
  await ready(page);
  await ask(page, "First");
  await page.getByRole("button", { name: /^More for/ }).first().click();
  await page.getByRole("menuitem", { name: "Rename" }).click();
  await page.keyboard.type("Renamed");
  await input(page).click();
  await page.locator("#conversations a", { hasText: "Renamed" }).waitFor();
  await page.keyboard.type("Hello");
  assert.equal(await input(page).inputValue(), "Hello");
});

test("numbers that cannot be used are explained", async () => {
  const page = await openPage();
  await ready(page);
  await ask(page, "Hello");
  await page.getByRole("button", { name: "Settings" }).click();
  await page.locator("#max_tokens").fill("3");
  await page.locator("#max_tokens").fill("0");
  assert.equal(await page.locator("#max_tokens-problem").innerText(), "Give a whole number from 1 on. Until then 3 counts.");
  await page.locator("#max_tokens").fill("4");
  assert.equal(await page.locator("#max_tokens-problem").isVisible(), false);
});
