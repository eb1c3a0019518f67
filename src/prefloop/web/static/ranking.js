// The verdict on three or more answers by one criterion: chips in tiers, best first.
//
// A tap ranks the next best; a ranked chip is picked and then moved by buttons or arrow keys; a chip can be dragged
// between two tiers, onto one (a tie), or back.

import { announce, el, focusOn } from "./dom.js";
import { append, dropBetween, dropOn, level, move, ranksOf, without } from "./judgement.js";

const FAR = 6; // pixels before a press becomes a drag

/** `get()` gives the verdict, `set(verdict)` changes it. Returns {node, sync}. */
export function ranking(question, count, get, set) {
  let picked = null;
  const board = el("ol", { class: "tiers", "aria-label": "Ranked, best first" });
  const tray = el("ul", { class: "tray", "aria-label": "Not ranked yet" });
  const unranked = el("span", { class: "hint", "aria-hidden": "true" }, "not ranked yet");
  const rest = el("div", { class: "rest" }, unranked, tray);
  const tools = el("div", { class: "tools", role: "group", "aria-label": "Move the picked answer" });
  const node = el(
    "fieldset",
    { class: "criterion ranking" },
    el("legend", {}, question),
    el("div", { class: "board" }, board, rest),
    tools,
  );

  const change = (tiers, answer) => {
    set({ ...get(), tiers, strength: null });
    announce(sayPlace(tiers, answer, count));
  };
  const shift = (answer, direction) => change(move(get().tiers, answer, direction), answer);
  const tool = (label, title, run) => {
    const onclick = () => (run(get().tiers, picked), focusOn(chipOf(picked)));
    return el("button", { type: "button", class: "quiet", title, onclick }, label);
  };
  tools.append(
    tool("← Better", "One step towards the front", (_, a) => shift(a, -1)),
    tool("Worse →", "One step towards the back", (_, a) => shift(a, 1)),
    tool("Remove", "Not ranked", (tiers, a) => change(without(tiers, a), a)),
  );
  const chipOf = (answer) => node.querySelector(`[data-answer="${answer}"]`);

  function chip(answer) {
    const ranked = get().tiers.flat().includes(answer);
    const button = el(
      "button",
      {
        type: "button",
        class: "chip",
        "data-answer": answer,
        "aria-label": sayPlace(get().tiers, answer, count),
        "aria-pressed": ranked ? String(picked === answer) : null,
        onclick: () => press(answer),
        onkeydown: (event) => onKey(event, answer),
      },
      String(answer + 1),
    );
    draggable(button, node, (target) => drop(answer, target));
    return button;
  }

  function press(answer) {
    if (get().tiers.flat().includes(answer)) {
      picked = picked === answer ? null : answer;
      sync();
    } else change(append(get().tiers, answer), answer);
    focusOn(chipOf(answer));
  }

  function onKey(event, answer) {
    const { tiers } = get();
    if (event.ctrlKey || event.altKey || event.metaKey || !tiers.flat().includes(answer)) return;
    if (event.key === "ArrowLeft" || event.key === "ArrowUp") shift(answer, -1);
    else if (event.key === "ArrowRight" || event.key === "ArrowDown") shift(answer, 1);
    else if (event.key === "Delete") change(without(tiers, answer), answer);
    else return;
    event.preventDefault();
    event.stopPropagation();
    focusOn(chipOf(answer));
  }

  function drop(answer, { tier, gap }) {
    const { tiers } = get();
    if (tier !== undefined) change(dropOn(tiers, answer, Number(tier)), answer);
    else if (gap !== undefined) change(dropBetween(tiers, answer, Number(gap)), answer);
    else change(without(tiers, answer), answer);
  }

  function sync() {
    const { tiers } = get();
    const focused = node.contains(document.activeElement) ? document.activeElement.dataset.answer : undefined;
    if (!tiers.flat().includes(picked)) picked = null;
    const sign = (attributes, text) => el("span", { ...attributes, "aria-hidden": "true" }, text);
    const gap = (place) => sign({ class: "gap", "data-gap": place }, place && place < tiers.length ? "›" : "");
    const level = (a, i) => [i > 0 && sign({ class: "level" }, "="), chip(a)];
    board.replaceChildren(
      ...tiers.map((tier, place) => {
        const chips = el("span", { class: "tier", "data-tier": place }, tier.flatMap(level));
        return el("li", {}, gap(place), chips, place === tiers.length - 1 && gap(tiers.length));
      }),
    );
    const hint = el("span", { "data-gap": 0 }, "Best first: tap, drag or type the numbers.");
    if (!tiers.length) board.append(el("li", { class: "hint" }, hint));
    const left = [...Array(count).keys()].filter((answer) => !tiers.flat().includes(answer));
    tray.replaceChildren(...left.map((answer) => el("li", {}, chip(answer))));
    rest.hidden = !left.length;
    tools.hidden = picked === null;
    if (focused !== undefined) focusOn(chipOf(focused));
  }

  return { node, sync };
}

/** In words: "Answer 3: rank 2 of 3, tied with answer 1". */
export function sayPlace(tiers, answer, count) {
  const place = ranksOf(tiers, count)[answer];
  if (place === null) return `Answer ${answer + 1}: not ranked`;
  const others = tiers[place - 1].filter((a) => a !== answer).map((a) => a + 1);
  const tied = others.length ? `, tied with ${others.join(" and ")}` : "";
  return `Answer ${answer + 1}: rank ${place} of ${tiers.length}${tied}`;
}

/** T then a number: level with the last ranked. */
export function rankNext(verdict, answer, asTie) {
  return { ...verdict, tiers: (asTie ? level : append)(verdict.tiers, answer), strength: null };
}

/** Mouse, pen and finger alike. `onDrop` gets the data of the place below the pointer: {tier}, {gap} or {}. */
function draggable(button, within, onDrop) {
  let from = null;
  const below = (event) => {
    const under = document.elementFromPoint(event.clientX, event.clientY);
    const target = under?.closest("[data-tier], [data-gap], .tray, .board");
    return within.contains(target) ? target : null;
  };
  const end = () => {
    from = null;
    button.classList.remove("dragged");
    button.style.translate = "";
    for (const node of within.querySelectorAll(".target")) node.classList.remove("target");
  };
  button.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    from = { x: event.clientX, y: event.clientY, moved: false };
    button.setPointerCapture(event.pointerId); // at once: a quick hand is elsewhere by the next event
  });
  button.addEventListener("pointermove", (event) => {
    if (!from) return;
    const [x, y] = [event.clientX - from.x, event.clientY - from.y];
    if (!from.moved && Math.hypot(x, y) < FAR) return;
    from.moved = true;
    button.classList.add("dragged");
    button.style.translate = `${x}px ${y}px`;
    for (const node of within.querySelectorAll(".target")) node.classList.remove("target");
    below(event)?.classList.add("target");
  });
  button.addEventListener("pointerup", (event) => {
    const moved = from?.moved, target = moved && below(event);
    end();
    if (!moved) return;
    button.addEventListener("click", (click) => click.stopImmediatePropagation(), { capture: true, once: true });
    if (target) onDrop(target.classList.contains("board") ? {} : target.dataset);
  });
  button.addEventListener("pointercancel", end);
}
