// Points of one field of one run over its steps, in order, in bounded memory. Nothing here draws.
"use strict";

const MAX_POINTS = 4000;

export class Line {
  constructor() {
    /** @type {number[]} */
    this.steps = [];
    /** @type {number[]} */
    this.values = [];
  }

  get last() {
    return this.steps.length ? this.steps[this.steps.length - 1] : -1;
  }

  /** A step that comes again has the newer value: events that were seen twice, runs that went back to a checkpoint. */
  add(step, value) {
    const { steps, values } = this;
    if (step > this.last) {
      steps.push(step);
      values.push(value);
      if (steps.length > MAX_POINTS) this.#thin();
      return;
    }
    let low = 0;
    let high = steps.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (steps[middle] < step) low = middle + 1;
      else high = middle;
    }
    if (steps[low] === step) values[low] = value;
    else {
      steps.splice(low, 0, step);
      values.splice(low, 0, value);
    }
  }

  /** Every second point of all but the last ones. */
  #thin() {
    const keep = this.steps.length - 100;
    const kept = (_, index) => index >= keep || index % 2 === 0;
    this.steps = this.steps.filter(kept);
    this.values = this.values.filter(kept);
  }

  /** Values as a running mean that remembers `weight` of what was. @param {number} weight @returns {number[]} */
  smoothed(weight) {
    if (!weight) return this.values;
    let mean = 0;
    let norm = 0;
    return this.values.map((value) => {
      mean = weight * mean + (1 - weight) * value;
      norm = weight * norm + (1 - weight);
      return mean / norm;
    });
  }
}

/** Four digits, in as few characters as they take. @param {number | null | undefined} value @returns {string} */
export function short(value) {
  if (value === null || value === undefined) return "–";
  if (Number.isInteger(value) && Math.abs(value) < 1e6) return String(value);
  const rounded = Number(value.toPrecision(4));
  return Math.abs(rounded) < 1e-3 ? rounded.toExponential() : String(rounded);
}
