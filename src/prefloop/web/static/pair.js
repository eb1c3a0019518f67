// The verdict on two answers by one criterion: which is better, and by how much.

import { el } from "./dom.js";
import { STRENGTHS, prefer, preferred, tie, tied } from "./judgement.js";

/** `get()` gives the verdict, `set(verdict)` changes it. Returns {node, sync}. */
export function pairVerdict(index, question, get, set) {
  const radio = (group, value, onchange, ...label) => {
    const input = el("input", { type: "radio", name: `${group}-${index}`, value, onchange });
    return el("label", { class: "option" }, input, el("span", {}, ...label));
  };
  const key = (k) => el("kbd", { "aria-hidden": "true" }, k);
  const choices = [
    radio("choice", 0, () => set({ ...prefer({ ...get(), tiers: [] }, 0) }), key("1"), "Answer 1"),
    radio("choice", "tie", () => set(tie(get(), 2)), key("T"), "Tie"),
    radio("choice", 1, () => set({ ...prefer({ ...get(), tiers: [] }, 1) }), key("2"), "Answer 2"),
  ];
  const strengths = STRENGTHS.map(([value, name]) =>
    radio("strength", value, () => set({ ...get(), strength: value }), name),
  );
  const strength = el(
    "fieldset",
    { class: "strength" },
    el("legend", {}, "By how much?"),
    el("div", { class: "options" }, strengths),
  );
  const node = el(
    "fieldset",
    { class: "criterion" },
    el("legend", {}, question),
    el("div", { class: "options" }, choices),
    strength,
  );
  const sync = () => {
    const verdict = get(), first = preferred(verdict);
    const chosen = tied(verdict) ? "tie" : String(first);
    for (const input of node.querySelectorAll(`[name=choice-${index}]`)) input.checked = input.value === chosen;
    for (const input of strength.querySelectorAll("input")) input.checked = Number(input.value) === verdict.strength;
    strength.disabled = first === null;
  };
  return { node, sync };
}

/** In words, for who cannot see it. */
export function sayPair(verdict) {
  const first = preferred(verdict);
  if (first === null) return tied(verdict) ? "Tie" : "Not judged";
  const name = STRENGTHS.find(([value]) => value === verdict.strength)?.[1];
  return `Answer ${first + 1} is better${name && name !== "better" ? `, ${name}` : name ? ", clearly" : ""}`;
}
