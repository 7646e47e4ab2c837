// What a conversation shows before its first message: examples, or what is missing.

import { copyWithButton, element, icon } from "./dom.js";

const EXAMPLES = [
  ["Opposites", "What is the opposite of hot?"],
  ["Plurals", "Write the plural of each word: quilt, man"],
  ["Order", "Sort these numbers from small to large: 41, 7, 23"],
  ["Judgement", "Is this message urgent, or can it wait?\nWater is coming through the kitchen ceiling."],
];
const HERE = ["localhost", "127.0.0.1", "[::1]"];

/** Fills the start page; `server.state` decides what it says. */
export function showWelcome(place, { server, model, send, look, enterKey }) {
  const shown = JSON.stringify([server, model]);
  if (place.dataset.shown === shown) return;
  place.dataset.shown = shown;
  const contents = {
    looking: () => [],
    ready: () => ready(model, send),
    empty: () => empty(look),
    locked: () =>
      problem(
        "This server asks for an API key",
        "Whoever runs it can give you one.",
        "Enter API key",
        enterKey,
      ),
    away: () =>
      problem("The server is not answering", `${server.error} This page keeps looking.`, "Look again", look),
  };
  place.replaceChildren(...contents[server.state]());
}

function ready(model, send) {
  const examples = EXAMPLES.map(([title, text]) =>
    element(
      "button",
      { type: "button", class: "example", click: () => send(text) },
      element("span", { class: "example-title" }, title),
      element("span", {}, text),
    ),
  );
  return [
    mark(),
    element("h2", {}, "What would you like to ask?"),
    element("p", { class: "lead" }, privacy(model)),
    element("div", { class: "examples" }, ...examples),
    model?.description ? element("p", { class: "about" }, `${model.id}: ${model.description}`) : null,
  ].filter(Boolean);
}

function privacy(model) {
  if (model?.owned_by === "upstream")
    return "This model runs on another server, which the operator of this one chose. What you write goes there.";
  if (HERE.includes(location.hostname)) return "The model runs on this machine. Nothing you write leaves it.";
  return `The model runs on ${location.hostname}. Nothing you write goes anywhere else.`;
}

function empty(look) {
  const copy = element(
    "button",
    {
      type: "button",
      class: "icon-button",
      "aria-label": "Copy command",
      click: (event) => copyWithButton(event.currentTarget, "strata demo"),
    },
    icon("copy"),
  );
  return [
    mark(),
    element("h2", {}, "There is no model yet"),
    element(
      "p",
      { class: "lead" },
      "Make one: this command trains three small models on this machine. It takes minutes and needs no download.",
    ),
    element("div", { class: "command" }, element("code", {}, "strata demo"), copy),
    element("p", { class: "about" }, "They appear here as soon as the server has them."),
    element("button", { type: "button", class: "button", click: look }, icon("retry"), "Look again"),
  ];
}

function problem(title, text, label, action) {
  return [
    mark(),
    element("h2", {}, title),
    element("p", { class: "lead" }, text),
    element("button", { type: "button", class: "button primary", click: action }, label),
  ];
}

function mark() {
  return element("div", { class: "mark-of-strata" }, icon("strata"));
}
