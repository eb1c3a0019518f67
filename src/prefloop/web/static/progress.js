// How far one has come, how fast, and what is left.

import { byId, el } from "./dom.js";

const number = new Intl.NumberFormat("en-GB");

export function showProgress(progress) {
  const { done, remaining, remaining_at_least: more, seconds_per_item: seconds, collected, target } = progress;
  const parts = [`${number.format(done)} done`, `${number.format(remaining)}${more ? "+" : ""} left`];
  if (seconds !== null) parts.push(`${duration(seconds)} each`);
  if (seconds !== null && !more && remaining) parts.push(`about ${duration(seconds * remaining)} to go`);
  byId("progress-text").replaceChildren(...parts.map((part) => el("span", {}, part)));
  byId("progress-bar").max = Math.max(done + remaining, 1);
  byId("progress-bar").value = done;
  const all = `All together: ${number.format(collected)} of ${number.format(target)}`;
  byId("progress-all").textContent = target === null ? "" : all;
}

function duration(seconds) {
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return `${Math.round(seconds / 3600)} h`;
}
