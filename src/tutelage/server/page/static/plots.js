// A grid of plots, one for each field, with a line for each run and kind of event; drawn by uPlot when looked at.
"use strict";

import { Line, short } from "./series.js";

/** What people look at first, in this order. */
const FIRST = ["loss", "nll", "kl_vs_base", "kl_base_vs_model", "delta_w_norm", "reward", "accuracy", "rewards/margins",
  "grad_norm", "learning_rate"];
const FIRST_PREFIXES = ["score/", "cos_sim/", "logp/"];
const MAX_FIRST = 12;
const FEW = 4;
/** Kept in logs, of no interest as curves. */
const PLAIN = new Set(["epoch", "num_input_tokens_seen"]);
const DASHES = [[], [6, 4], [2, 3], [10, 3, 2, 3]];
const HEIGHT = 180;

const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function rank(field) {
  const place = FIRST.indexOf(field);
  if (place >= 0) return place;
  const prefix = FIRST_PREFIXES.findIndex((one) => field.startsWith(one));
  return prefix >= 0 ? FIRST.length + prefix : 100;
}

/** Axes want few characters. */
function tick(value) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  return size >= 1e5 || size < 1e-3 ? value.toExponential(0) : String(Number(value.toPrecision(4)));
}

/** A range of values that are all the same one. */
function around(_, low, high) {
  const room = Math.abs(low) * 0.1 || 1;
  return [low < 0 || low - room >= 0 ? low - room : 0, high + room];
}

/** A range with room on both sides of the one step there is. */
function beside({ data: [[step]] }) {
  return [step - 1, step + 1];
}

/** One field. */
class Plot {
  constructor(grid, field) {
    this.grid = grid;
    this.field = field;
    this.drawn = null;
    this.visible = false;
    this.stale = true;
    this.figure = document.createElement("figure");
    this.figure.className = "plot";
    this.figure.dataset.field = field;
    const caption = document.createElement("figcaption");
    const title = document.createElement("span");
    title.textContent = field;
    this.readout = document.createElement("span");
    this.readout.className = "readout";
    caption.append(title, this.readout);
    this.canvas = document.createElement("div");
    this.canvas.className = "canvas";
    this.figure.append(caption, this.canvas);
  }

  /** Lines by run and tag. What monitoring repeats of the training's own numbers is one line too many. */
  lines() {
    const found = [];
    this.grid.runs.forEach((run) => {
      const tags = this.grid.data.get(run.id)?.get(this.field);
      if (!tags) return;
      const names = [...tags.keys()].filter((tag) => !(tag === "monitoring" && tags.has("train")));
      names.forEach((tag, index) => found.push({ run, tag, index, line: tags.get(tag) }));
    });
    return found;
  }

  draw() {
    if (!this.visible) {
      this.stale = true;
      return;
    }
    this.stale = false;
    const lines = this.lines();
    const data = this.#data(lines);
    // What has one point, or one value, has axes of its own.
    const kind = [data[0].length === 1, this.#isFlat(data)];
    const key = [...kind, ...lines.map((one) => `${one.run.id} ${one.tag}`)].join("\n");
    if (this.drawn && key === this.key) this.drawn.setData(data);
    else {
      this.drawn?.destroy();
      this.key = key;
      this.drawn = lines.length ? new uPlot(this.#options(lines, data), data, this.canvas) : null;
    }
    this.shown = lines;
    this.figure.classList.toggle("many", this.grid.runs.length > 1 || lines.length > 1);
    this.#read(null);
  }

  forget() {
    this.drawn?.destroy();
    this.drawn = null;
    this.draw();
  }

  resize() {
    if (this.drawn && this.canvas.clientWidth) this.drawn.setSize({ width: this.canvas.clientWidth, height: HEIGHT });
  }

  #data(lines) {
    const { smooth, logScale } = this.grid.options;
    const tables = lines.map(({ line }) => {
      const values = line.smoothed(smooth);
      return [line.steps, logScale ? values.map((value) => (value > 0 ? value : null)) : values];
    });
    return tables.length > 1 ? uPlot.join(tables) : tables[0] || [[], []];
  }

  #isFlat(data) {
    if (this.grid.options.logScale) return false;
    const values = data.slice(1).flat().filter((value) => value !== null && value !== undefined);
    return values.every((value) => value === values[0]);
  }

  #options(lines, data) {
    const flat = this.#isFlat(data);
    const faint = style("--faint");
    const grid = { stroke: style("--line"), width: 1 };
    const axis = { stroke: faint, grid, ticks: { ...grid, size: 4 }, font: "11px system-ui, sans-serif" };
    return {
      width: this.canvas.clientWidth || 300,
      height: HEIGHT,
      scales: {
        x: { time: false, ...(data[0].length === 1 && { range: beside }) },
        y: { distr: this.grid.options.logScale ? 3 : 1, ...(flat && { range: around }) },
      },
      legend: { show: false },
      cursor: { sync: { key: "plots" }, drag: { x: true, y: false }, points: { size: 6 } },
      axes: [
        { ...axis, size: 26, label: "step", labelSize: 14, labelGap: -2, labelFont: "11px system-ui, sans-serif", values: (_, splits) => splits.map((one) => (Number.isInteger(one) ? tick(one) : "")) },
        { ...axis, size: 52, values: (_, splits) => splits.map((one) => (one === null ? "" : tick(one))) },
      ],
      series: [{}, ...lines.map(({ run, index }) => ({
        stroke: style(`--s${run.colour}`), width: 1.6, dash: DASHES[index % DASHES.length], spanGaps: true,
      }))],
      hooks: { setCursor: [(drawn) => this.#read(drawn.cursor.idx)] },
    };
  }

  /** Values under the cursor, or the newest ones. */
  #read(index) {
    const parts = [];
    const data = this.drawn?.data;
    if (data) {
      const at = index ?? null;
      if (at !== null) parts.push(`step ${short(data[0][at])}`);
      this.shown.slice(0, 4).forEach(({ run, tag, line }, place) => {
        const pair = document.createElement("span");
        pair.className = "pair";
        pair.title = `${run.name} ${tag}`;
        const mark = document.createElement("span");
        mark.className = `swatch s${run.colour}`;
        const value = document.createElement("b");
        value.textContent = short(at === null ? line.values[line.values.length - 1] : data[place + 1][at]);
        if (this.grid.runs.length > 1 || this.shown.length > 1) pair.append(mark, " ");
        pair.append(value);
        parts.push(pair);
      });
      if (this.shown.length > 4 && at === null) parts.push("…");
    }
    this.readout.replaceChildren(...parts.flatMap((part) => [part, " "]));
    this.figure.setAttribute("aria-label", `${this.field}: ${this.readout.textContent}`);
  }
}

export class PlotGrid {
  /** @param {HTMLElement} first @param {HTMLElement} more @param {HTMLDetailsElement} moreBox */
  constructor(first, more, moreBox) {
    this.first = first;
    this.more = more;
    this.moreBox = moreBox;
    this.runs = [];
    /** By run, field and tag. @type {Map<string, Map<string, Map<string, Line>>>} */
    this.data = new Map();
    this.plots = new Map();
    this.options = { smooth: 0, logScale: false };
    this.wanted = "";
    this.pending = new Set();
    this.looks = new IntersectionObserver((entries) => entries.forEach(({ target, isIntersecting }) => {
      const plot = this.plots.get(target.dataset.field);
      if (!plot) return;
      plot.visible = isIntersecting;
      if (isIntersecting && plot.stale) plot.draw();
    }), { rootMargin: "200px" });
    this.sizes = new ResizeObserver(() => this.plots.forEach((plot) => plot.resize()));
    this.sizes.observe(first);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.redraw());
  }

  /** @param {{id: string, name: string, colour: number}} run */
  addRun(run) {
    this.runs.push(run);
    this.data.set(run.id, new Map());
  }

  removeRun(id) {
    this.runs = this.runs.filter((run) => run.id !== id);
    this.data.delete(id);
    this.redraw();
  }

  /** All numbers of a run, in place of those that were there. */
  fill(id, series) {
    const fields = new Map();
    for (const { tag, field, steps, values } of series) {
      const line = this.#line(fields, field, tag);
      steps.forEach((step, index) => line.add(step, values[index]));
    }
    if (!this.data.has(id)) return;
    this.data.set(id, fields);
    fields.forEach((_, field) => this.#changed(field));
  }

  /** What a run reported just now. */
  add(id, event) {
    const fields = this.data.get(id);
    if (!fields) return;
    const { tag, step, ...values } = event;
    for (const [field, value] of Object.entries(values)) {
      if (typeof value !== "number") continue;
      const line = this.#line(fields, field, typeof tag === "string" ? tag : "");
      line.add(typeof step === "number" ? step : line.last + 1, value);
      this.#changed(field);
    }
  }

  redraw() {
    this.plots.forEach((plot) => plot.forget());
  }

  /** Only plots whose field has this in its name. */
  filter(text) {
    this.wanted = text.trim().toLowerCase();
    this.#arrange();
  }

  #line(fields, field, tag) {
    if (!fields.has(field)) fields.set(field, new Map());
    const tags = fields.get(field);
    if (!tags.has(tag)) tags.set(tag, new Line());
    return tags.get(tag);
  }

  /** Many changes at once are drawn once. */
  #changed(field) {
    if (PLAIN.has(field)) return;
    if (!this.pending.size) setTimeout(() => this.#show(), 60);
    this.pending.add(field);
  }

  #show() {
    const fields = [...this.pending];
    this.pending.clear();
    const fresh = fields.filter((field) => !this.plots.has(field));
    fresh.forEach((field) => this.plots.set(field, new Plot(this, field)));
    if (fresh.length) this.#arrange();
    fields.forEach((field) => this.plots.get(field).draw());
  }

  #arrange() {
    const fields = [...this.plots.keys()].sort((a, b) => rank(a) - rank(b) || (a < b ? -1 : 1));
    const telling = fields.filter((field) => rank(field) < 100).slice(0, MAX_FIRST);
    const first = new Set(this.wanted ? fields : telling.length >= FEW ? telling : fields.slice(0, MAX_FIRST));
    let others = 0;
    for (const field of fields) {
      const { figure } = this.plots.get(field);
      figure.hidden = Boolean(this.wanted) && !field.toLowerCase().includes(this.wanted);
      if (!first.has(field)) others += 1;
      const place = first.has(field) ? this.first : this.more;
      place.append(figure);
      this.looks.observe(figure);
    }
    this.moreBox.hidden = !others;
    this.moreBox.querySelector("summary").textContent = `${others} more metrics`;
    const empty = document.getElementById("plots-empty");
    if (empty) empty.hidden = fields.length > 0;
  }
}
