// What is read: the conversation so far and the answers to it.

import { byId, el } from "./dom.js";
import { markDifferences } from "./diff.js";
import { fill } from "./text.js";

const SHORT = 1200; // characters of earlier turns that are shown without asking
const ROLES = { system: "System", user: "User", assistant: "Assistant" };

let task = null;
let choices = { plain: false, differences: false };

/** Show a task's texts. `buttons(answer)` makes what stands in an answer's head. */
export function showTask(newTask, buttons) {
  task = newTask;
  showConversation();
  const answers = byId("answers");
  answers.dataset.count = Math.min(task.answers.length, 3);
  answers.replaceChildren(
    ...task.answers.map((_, i) =>
      el(
        "article",
        { class: "answer", "data-place": i, "aria-labelledby": `answer-${i}` },
        el("header", {}, el("h2", { id: `answer-${i}` }, `Answer ${i + 1}`), buttons(i)),
        el("div", { class: "text", dir: "auto" }),
      ),
    ),
  );
  byId("differences").hidden = task.answers.length !== 2;
  fillAnswers();
}

function showConversation() {
  const turns = task.messages.map((message) =>
    el(
      "div",
      { class: `turn ${ROLES[message.role] ? message.role : "user"}` },
      el("p", { class: "role" }, ROLES[message.role] ?? message.role),
      el("div", { class: "text", dir: "auto" }),
    ),
  );
  const earlier = turns.slice(0, -1);
  const length = task.messages.slice(0, -1).reduce((sum, message) => sum + message.text.length, 0);
  const summary = el("summary", {}, `${earlier.length} earlier ${earlier.length > 1 ? "turns" : "turn"}`);
  const before = length > SHORT ? [el("details", {}, summary, earlier)] : earlier;
  byId("turns").replaceChildren(...before, turns.at(-1));
  fillTurns();
  for (const turn of turns) foldLong(turn);
}

/** A turn that would push the answers off the screen shows its beginning. */
function foldLong(turn) {
  const text = turn.querySelector(".text");
  text.classList.add("folded");
  if (text.scrollHeight <= text.clientHeight + 40) return text.classList.remove("folded");
  const toggle = () => {
    const folded = text.classList.toggle("folded");
    button.setAttribute("aria-expanded", String(!folded));
    button.textContent = folded ? "Show all" : "Show less";
  };
  const attributes = { type: "button", class: "quiet", "aria-expanded": "false", onclick: toggle };
  const button = el("button", attributes, "Show all");
  turn.append(button);
}

function fillTurns() {
  const nodes = byId("turns").querySelectorAll(".turn > .text");
  nodes.forEach((node, i) => fill(node, task.messages[i], choices.plain));
}

/** False where the answers are too long to be compared word by word. */
function fillAnswers() {
  const nodes = [...byId("answers").querySelectorAll(".answer > .text")];
  nodes.forEach((node, i) => fill(node, task.answers[i], choices.plain));
  return !choices.differences || nodes.length !== 2 || markDifferences(...nodes);
}

/** {plain, differences}: this reader's choice. */
export function setReading(chosen) {
  choices = chosen;
  if (!task) return true;
  fillTurns();
  return fillAnswers();
}
