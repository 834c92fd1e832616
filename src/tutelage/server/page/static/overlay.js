// Which runs are drawn on a page, from its legend; on the page of a run others can be added and taken away.
"use strict";

import { PlotGrid } from "./plots.js";
import { follow } from "./stream.js";

const POLL = 5000;
const legend = document.getElementById("legend");
const place = document.getElementById("plots");

/** @type {PlotGrid} */
let grid;

async function load(id) {
  const answer = await fetch(`/runs/${encodeURIComponent(id)}/plots`);
  if (!answer.ok) throw new Error(`${answer.status}`);
  const found = await answer.json();
  grid.fill(id, found.series);
  return found;
}

/** Draw a run, and go on while it does. @param {string} id @param {boolean} streams what it reports comes at once */
async function draw(id, streams) {
  let found;
  try {
    found = await load(id);
  } catch {
    setTimeout(() => draw(id, streams), POLL);
    return;
  }
  if (!found.live || !grid.data.has(id)) return;
  if (!streams) {
    setTimeout(() => (document.hidden ? document.addEventListener("visibilitychange", () => draw(id, false), { once: true })
      : draw(id, false)), POLL);
    return;
  }
  follow({
    url: (after) => `/api/events/stream?run_id=${encodeURIComponent(id)}&after=${encodeURIComponent(after)}`,
    place: String(found.after),
    name: "event",
    onItem: (event) => grid.add(id, event.data),
  });
}

function begin(item, colour, streams) {
  grid.addRun({ id: item.dataset.run, name: item.dataset.name, colour });
  draw(item.dataset.run, streams);
}

function options() {
  const bar = document.getElementById("plot-options");
  bar.hidden = false;
  document.getElementById("log-scale").addEventListener("change", (event) => {
    grid.options.logScale = event.target.checked;
    grid.redraw();
  });
  document.getElementById("smooth").addEventListener("change", (event) => {
    grid.options.smooth = Number(event.target.value);
    grid.redraw();
  });
  document.getElementById("plot-filter").addEventListener("input", (event) => grid.filter(event.target.value));
}

/** The address says what is drawn, so that it can be sent to somebody. */
function remember() {
  const address = new URL(location.href);
  address.searchParams.delete("with");
  grid.runs.slice(1).forEach((run) => address.searchParams.append("with", run.id));
  history.replaceState(history.state, "", address);
}

function overlays() {
  const form = document.getElementById("overlay");
  const choice = document.getElementById("overlay-choice");
  let colour = grid.runs.length;

  legend.addEventListener("submit", (event) => {
    const item = event.target.closest("li");
    event.preventDefault();
    grid.removeRun(item.dataset.run);
    item.remove();
    remember();
    choice?.focus();
  });
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const chosen = choice?.selectedOptions[0];
    if (!chosen?.value || grid.data.has(chosen.value)) return;
    const item = document.createElement("li");
    item.dataset.run = chosen.value;
    item.dataset.name = chosen.dataset.name;
    const mark = document.createElement("span");
    mark.className = `swatch s${colour % 9}`;
    const link = document.createElement("a");
    link.href = `/runs/${encodeURIComponent(chosen.value)}`;
    link.textContent = chosen.dataset.name;
    const away = document.createElement("form");
    away.className = "inline";
    const button = document.createElement("button");
    button.className = "quiet small";
    button.textContent = "×";
    button.setAttribute("aria-label", `Take ${chosen.dataset.name} away`);
    away.append(button);
    item.append(mark, " ", link, " ", away);
    legend.append(item);
    begin(item, colour % 9, false);
    colour += 1;
    choice.value = "";
    remember();
  });
}

if (legend && place) {
  grid = new PlotGrid(place, document.getElementById("plots-more"), document.getElementById("more-plots"));
  const compares = location.pathname === "/compare";
  [...legend.children].forEach((item, index) => begin(item, index, !compares && index === 0));
  options();
  if (!compares) overlays();
}
