// What every page has: times that grow older, answers that went wrong, polling that does not get in the way.
"use strict";

/** The rule of `formats.ago`. @param {Date} moment @returns {string} */
function ago(moment) {
  const seconds = (Date.now() - moment.getTime()) / 1000;
  if (seconds < 5) return "just now";
  for (const [limit, unit, name] of [[60, 1, "s"], [3600, 60, "min"], [172800, 3600, "h"], [2592000, 86400, "d"]]) {
    if (seconds < limit) return `${Math.floor(seconds / unit)} ${name} ago`;
  }
  return moment.toISOString().slice(0, 10);
}

function refreshTimes() {
  for (const time of document.querySelectorAll("time[data-ago]")) {
    const text = ago(new Date(time.dateTime));
    if (time.textContent !== text) time.textContent = text;
  }
}

/** A sentence above everything, until the next click works. @param {string} sentence */
function tell(sentence) {
  const notice = document.getElementById("notice");
  notice.textContent = sentence;
  notice.hidden = !sentence;
}

setInterval(refreshTimes, 10000);

document.addEventListener("htmx:before:request", (event) => {
  const polled = event.detail.ctx.sourceEvent?.type === "every";
  // Nobody looks, or somebody is about to answer a question that the new content would take away.
  if (polled && (document.hidden || document.querySelector("[popover]:popover-open"))) event.preventDefault();
});

document.addEventListener("htmx:response:error", (event) => {
  const { ctx } = event.detail;
  if (ctx.sourceEvent?.type === "every") return;
  const page = new DOMParser().parseFromString(ctx.text || "", "text/html");
  tell(page.getElementById("problem")?.textContent || `The server answered with ${ctx.response.status}.`);
});

document.addEventListener("htmx:error", (event) => {
  const { ctx } = event.detail;
  if (ctx?.sourceEvent?.type !== "every") tell("The server does not answer. Is it still running?");
});

document.addEventListener("htmx:after:swap", (event) => {
  if (event.detail.ctx.sourceEvent?.type !== "every") tell("");
});

for (const place of document.querySelectorAll("[data-origin]")) place.textContent = location.origin;

// Browsers have a clipboard for pages that came by https or from this machine.
if (navigator.clipboard) {
  document.documentElement.classList.add("copies");
  document.addEventListener("click", async (event) => {
    const button = event.target.closest("[data-copy]");
    if (!button) return;
    await navigator.clipboard.writeText(button.dataset.copy);
    button.textContent = "Copied";
  });
}
