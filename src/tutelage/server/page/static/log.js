// The log of a run as it is printed: what a terminal would show, in a bounded part of the page.
"use strict";

import { follow } from "./stream.js";

const MAX_CHARACTERS = 400000;
const MAX_BLOCK = 16000;
const MAX_LINE = 20000;
// Of `formats.TERMINAL_COMMANDS`.
const COMMANDS = /\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-_])/g;
const UNFINISHED_COMMAND = /\x1b(?:\[[0-?]*[ -/]*|\][^\x07\x1b]*)?$/;

/** The newest state of a line that was written over. @param {string} line @returns {string} */
function newest(line) {
  if (!line.includes("\r")) return line;
  const parts = line.split("\r").filter(Boolean);
  return parts.length ? parts[parts.length - 1] : "";
}

/** Text that grows at its end; the oldest of it goes when it gets long. */
export class LogText {
  /** @param {HTMLElement} pre @param {HTMLElement} cut shown when something has gone */
  constructor(pre, cut) {
    this.pre = pre;
    this.cut = cut;
    this.held = "";
    this.line = "";
    this.characters = 0;
    this.last = document.createTextNode("");
    pre.replaceChildren(this.last);
  }

  /** @param {string} text */
  append(text) {
    text = this.held + text;
    const unfinished = text.match(UNFINISHED_COMMAND);
    this.held = unfinished && unfinished[0].length < 200 ? unfinished[0] : "";
    text = text.slice(0, text.length - this.held.length).replace(COMMANDS, "");
    const lines = (this.line + text).split("\n");
    let line = lines.pop();
    if (line.length > MAX_LINE) {
      // A bar that is drawn over and over, or a line without an end.
      const state = newest(line);
      line = state.length > MAX_LINE ? "" : state + (line.endsWith("\r") ? "\r" : "");
      if (!line) lines.push(state);
    }
    this.line = line;
    if (lines.length) this.#complete(lines.map(newest).join("\n") + "\n");
    this.last.data = newest(this.line);
    this.#forget();
  }

  /** Whole lines go into text nodes of some size, so that old ones can go without a look at new ones. */
  #complete(text) {
    if (text.length > MAX_CHARACTERS) {
      text = text.slice(text.indexOf("\n", text.length - MAX_CHARACTERS) + 1);
      this.cut.hidden = false;
    }
    this.characters += text.length;
    const block = this.last.previousSibling;
    if (block && block.length + text.length < MAX_BLOCK) {
      block.appendData(text);
      return;
    }
    for (let start = 0; start < text.length;) {
      const end = text.indexOf("\n", start + MAX_BLOCK) + 1 || text.length;
      this.pre.insertBefore(document.createTextNode(text.slice(start, end)), this.last);
      start = end;
    }
  }

  #forget() {
    while (this.characters > MAX_CHARACTERS && this.pre.childNodes.length > 2) {
      this.characters -= this.pre.firstChild.length;
      this.pre.firstChild.remove();
      this.cut.hidden = false;
    }
  }
}

function start() {
  const box = document.getElementById("log");
  if (!box) return;
  box.scrollTop = box.scrollHeight;
  if (!box.dataset.follow) return;

  const view = new LogText(document.getElementById("log-text"), document.getElementById("log-cut"));
  const follows = document.getElementById("follow");
  document.getElementById("follow-label").hidden = false;
  const atEnd = () => box.scrollHeight - box.scrollTop - box.clientHeight < 30;
  const toEnd = () => { box.scrollTop = box.scrollHeight; };
  follows.addEventListener("change", () => follows.checked && toEnd());
  let width = box.clientHeight;
  box.addEventListener("scroll", () => {
    // Who scrolls up wants to read; who comes back to the end wants to see more.
    if (box.clientHeight === width) follows.checked = atEnd();
    width = box.clientHeight;
  });

  let waiting = "";
  function show() {
    const text = waiting;
    waiting = "";
    document.getElementById("log-empty")?.remove();
    view.append(text);
    if (follows.checked) toEnd();
  }

  follow({
    url: (place) => `${box.dataset.follow}?follow=true&start=${encodeURIComponent(place)}`,
    place: box.dataset.start,
    name: "log",
    onItem: (text) => {
      if (!waiting) requestAnimationFrame(show);
      waiting += text;
    },
    onEnd: () => document.body.dispatchEvent(new CustomEvent("run-ended")),
  });
}

start();
