// How far one has come, how fast, and what is left.

import { byId } from "./dom.js";

const number = new Intl.NumberFormat("en-GB");

export function showProgress({ done, remaining, remaining_at_least: more, seconds_per_item: seconds, collected, target }) {
  const parts = [`${number.format(done)} done`, `${number.format(remaining)}${more ? "+" : ""} left`];
  if (seconds !== null) parts.push(`${duration(seconds)} each`);
  if (seconds !== null && !more && remaining) parts.push(`about ${duration(seconds * remaining)} to go`);
  const texts = byId("progress-text");
  texts.replaceChildren(...parts.map((part) => Object.assign(document.createElement("span"), { textContent: part })));
  byId("progress-bar").max = Math.max(done + remaining, 1);
  byId("progress-bar").value = done;
  byId("progress-all").textContent = target === null ? "" : `All together: ${number.format(collected)} of ${number.format(target)}`;
}

function duration(seconds) {
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return `${Math.round(seconds / 3600)} h`;
}
