// The labelling page: one task after the other.

import { Refused, Unreachable, call } from "./api.js";
import { Clock } from "./clock.js";
import { announce, byId, el, focusOn } from "./dom.js";
import { keepGuidelines, toggleGuidelines } from "./guidelines.js";
import { begin, draftOf, lean, missing, newId, prefer, ranksOf, submissionOf, tie } from "./judgement.js";
import { Keeper } from "./keeper.js";
import { listen, showHelp } from "./keys.js";
import { notes } from "./notes.js";
import { pairVerdict, sayPair } from "./pair.js";
import * as page from "./preferences.js";
import { showProgress } from "./progress.js";
import { rankNext, ranking, sayPlace } from "./ranking.js";
import { setReading, showTask } from "./reading.js";
import { ask, signOut, whoIsThere } from "./session.js";

const WHY_NOTHING = {
  "all judged": ["All done", "You have judged everything there is for you. New tasks appear here by themselves."],
  "enough collected": ["Enough collected", "Thank you: that was all. New tasks appear here by themselves."],
  paused: ["Paused", "Whoever runs this has paused the labelling. It goes on here by itself."],
  refused: ["No task", "The server has none for you at the moment; this page goes on asking."],
  "nothing to judge": ["Nothing to judge yet", "Answers appear here by themselves as soon as there are some."],
};
const FIRST_POLL = 5, LAST_POLL = 60; // seconds

const clock = new Clock();
let keeper, task = null, work = null, verdicts = [], extras = null;
let active = 0; // the criterion that the keyboard speaks of
let busy = false, tieNext = false;
let poll = FIRST_POLL, timer = 0;

// From task to task

async function next(said = "") {
  clearTimeout(timer);
  try {
    const answer = await ask("POST", "/tasks/next");
    showProgress(answer.progress);
    if (answer.task) show(answer.task, keeper.newest(answer.task), said);
    else rest(answer.reason, said);
  } catch (error) {
    rest("refused", said);
    say(error.message);
  }
}

function show(newTask, draft, said) {
  task = newTask;
  work = begin(task, draft);
  [active, poll, tieNext] = [0, FIRST_POLL, false];
  document.title = `Task ${task.number} · prefloop`;
  byId("task-heading").textContent = `Task ${task.number}`;
  byId("idle").hidden = true;
  byId("task").hidden = false;
  showTask(task, answerButtons);
  extras = notes(task, () => work, change);
  verdicts = work.verdicts.map((_, i) => criterion(i));
  byId("dock").classList.toggle("many", task.criteria.length > 1);
  byId("criteria").replaceChildren(...verdicts.map((v) => v.node));
  sync();
  clock.start(work.seconds);
  byId("task").dataset.id = task.id;
  focusOn(byId("task-heading"));
  scrollTo(0, 0);
  announce(`${said} Task ${task.number}.`);
  keepGuidelines(task.guidelines).catch((error) => tell(error.message)); // no reason to wait
}

function rest(reason, said) {
  task = work = null;
  const [heading, text] = WHY_NOTHING[reason] ?? ["One moment", "Looking for the next task."];
  const news = byId("idle-heading").textContent !== heading || byId("idle").hidden;
  byId("idle-heading").textContent = heading;
  byId("idle-text").textContent = text;
  byId("task").hidden = true;
  byId("idle").hidden = false;
  document.title = `${heading} · prefloop`;
  if (news) {
    focusOn(byId("idle-heading"));
    announce(`${said} ${heading}. ${text}`);
  }
  timer = setTimeout(lookAgain, (WHY_NOTHING[reason] ? poll : 1) * 1000);
  poll = Math.min(poll * 1.5, LAST_POLL);
}

function lookAgain() {
  clearTimeout(timer);
  if (task) return;
  if (busy || document.hidden) timer = setTimeout(lookAgain, 1000);
  else alone(next);
}
document.addEventListener("visibilitychange", () => !document.hidden && keeper && lookAgain());

/** One request of the work at a time: what is clicked meanwhile does not count. */
async function alone(run) {
  if (busy) return;
  busy = true;
  byId("main").setAttribute("aria-busy", "true");
  tell("");
  try {
    await run();
  } catch (error) {
    tell(error.message);
  } finally {
    busy = false;
    byId("main").removeAttribute("aria-busy");
  }
}

// What is said about a task

function change(part) {
  work = { ...work, ...part, seconds: clock.seconds };
  tell("");
  keeper.change(task, draftOf(work, task));
  sync();
}

function criterion(i) {
  const name = task.criteria[i], many = task.criteria.length > 1, count = task.answers.length;
  const get = () => work.verdicts[i];
  const set = (verdict) => {
    active = i;
    change({ verdicts: work.verdicts.map((v, j) => (j === i ? verdict : v)) });
  };
  const title = many ? name : "";
  const widget =
    count === 2
      ? pairVerdict(i, title || "Which answer is better?", get, set)
      : ranking(title || "Rank the answers, best first", count, get, set);
  return { ...widget, get, set };
}

function answerButtons(i) {
  const quiet = (attributes, run, ...text) =>
    el("button", { type: "button", class: "quiet", ...attributes, onclick: run }, ...text);
  const rank = task.answers.length > 2 && quiet({ class: "quiet rank", "data-rank": i }, () => choose(i));
  const edit = quiet({ "aria-label": `Edit answer ${i + 1}` }, () => extras.edit(i), "Edit");
  return el("div", { class: "buttons" }, rank, edit);
}

function sync() {
  verdicts.forEach((verdict, i) => {
    verdict.sync();
    verdict.node.classList.toggle("active", i === active && verdicts.length > 1);
  });
  extras.sync();
  const { tiers } = work.verdicts[active];
  const ranks = ranksOf(tiers, task.answers.length);
  for (const answer of document.querySelectorAll(".answer")) {
    const rank = ranks[answer.dataset.place];
    answer.classList.toggle("best", rank === 1 && tiers.length > 1);
    const button = answer.querySelector(".rank");
    if (button) button.textContent = rank ? `Rank ${rank}` : "Rank next";
  }
}

function choose(answer) {
  if (answer >= task.answers.length) return;
  const { get, set, node } = verdicts[active];
  if (task.answers.length === 2) {
    set(prefer(get(), answer));
    return announce(sayPair(get()));
  }
  if (get().tiers.flat().includes(answer)) {
    node.querySelector(`.chip[data-answer="${answer}"]`).click();
  } else {
    set(rankNext(get(), answer, tieNext));
    tieNext = false;
    announce(sayPlace(get().tiers, answer, task.answers.length));
  }
}

function sayTie() {
  const { get, set } = verdicts[active];
  if (task.answers.length > 2) {
    tieNext = !tieNext && get().tiers.length > 0;
    return announce(tieNext ? "The next number ties with the last." : "No tie.");
  }
  set(tie(get(), 2));
  announce(sayPair(get()));
}

function leanTo(side) {
  if (task.answers.length > 2) return;
  const { get, set } = verdicts[active];
  set(lean(get(), side));
  announce(sayPair(get()));
}

function takeBack() {
  const { get, set } = verdicts[active];
  set({ ...get(), tiers: task.answers.length === 2 ? [] : get().tiers.slice(0, -1), strength: null });
  announce(task.answers.length === 2 ? "Not judged" : "The last rank is taken back.");
}

function nextCriterion() {
  active = (active + 1) % verdicts.length;
  sync();
  verdicts[active].node.scrollIntoView({ block: "nearest" });
  announce(task.criteria[active]);
}

// Sending, skipping, undoing

function send() {
  const open = missing(work, task);
  if (open >= 0) return sayMissing(open);
  alone(async () => {
    work.seconds = clock.seconds;
    await deliver(task.id, submissionOf(work, task));
  });
}

function sayMissing(open) {
  active = open;
  sync();
  const name = task.criteria.length > 1 ? `${task.criteria[open]}: ` : "";
  tell(name + (task.answers.length === 2 ? "Choose an answer or a tie first." : "Rank every answer first."));
  verdicts[open].node.scrollIntoView({ block: "nearest" });
  announce(byId("problem").textContent);
}

/** Until the server has said that it is stored, or that it never will be. */
async function deliver(id, submission) {
  keeper.sending({ id }, submission);
  let said = "Stored.";
  try {
    await ask("POST", `/tasks/${encodeURIComponent(id)}/judgement`, submission);
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    if (task?.id === id && ![404, 409].includes(error.status)) {
      change({ id: newId() }); // something is wrong with what was said: it can be mended and sent anew
      throw error;
    }
    said = `Not stored. ${error.message}`;
  }
  keeper.settled();
  await next(said);
  if (said !== "Stored.") tell(said);
}

function skip() {
  alone(async () => {
    await keeper.saved(); // undo brings it back
    await ask("POST", `/tasks/${encodeURIComponent(task.id)}/skip`).catch(gone);
    keeper.settled();
    await next("Skipped.");
  });
}

function undo() {
  alone(async () => {
    await keeper.saved();
    let undone;
    try {
      // Not asked again by itself: heard twice, it would undo two.
      undone = await call("POST", "/undo");
    } catch (error) {
      if (!(error instanceof Unreachable)) throw error;
      await next("No answer to undo: this is the task that is yours now.");
      return;
    }
    showProgress(undone.progress);
    if (!undone.task) return say("There is nothing to undo.");
    show(undone.task, undone.task.draft, "Undone.");
    change({});
  });
}

const gone = (error) => {
  if (!(error instanceof Refused && [404, 409].includes(error.status))) throw error;
};

function say(text) {
  tell(text);
  announce(text);
}

/** A line above the buttons, until the next thing is done. */
function tell(text) {
  for (const id of ["problem", "idle-problem"]) {
    byId(id).textContent = text;
    byId(id).hidden = !text;
  }
}

// The page around it

function read(changes) {
  page.prefer(changes);
  const { plain, differences } = page.preferences;
  byId("plain").setAttribute("aria-pressed", String(plain));
  byId("differences").setAttribute("aria-pressed", String(differences));
  if (!setReading({ plain, differences })) say("These answers are too long to compare word by word.");
}

const VERDICT_KEYS = [
  {
    keys: [..."123456789"],
    shown: ["1", "…", "9"],
    what: "This answer is better; again: by more. With three or more answers: it is the next best; again: pick it",
    run: (key) => choose(Number(key) - 1),
  },
  {
    keys: ["t"],
    shown: ["T"],
    what: "Tie. With three or more answers: the next number ties with the last",
    run: sayTie,
  },
  {
    keys: ["ArrowLeft", "ArrowRight"],
    shown: ["←", "→"],
    what: "Towards the one answer or the other; move a picked answer",
    run: (key) => leanTo(key === "arrowleft" ? 0 : 1),
  },
  { keys: ["Backspace"], shown: ["⌫"], what: "Take the last rank back", run: takeBack },
  { keys: ["c"], shown: ["C"], what: "Next criterion", run: nextCriterion },
  {
    keys: ["Enter"],
    shown: ["Enter"],
    what: "Send; with several criteria: go to the next one that is open. In a text: Ctrl + Enter",
    run: send,
  },
];
const TASK_KEYS = [
  { keys: ["s"], shown: ["S"], what: "Skip this task", run: skip },
  {
    keys: ["f"],
    shown: ["F"],
    what: "Go to the flags (Space sets one)",
    run: () => byId("flags").querySelector("input").focus(),
  },
  { keys: ["r"], shown: ["R"], what: "Write a reason", run: () => byId("reason").focus() },
  {
    keys: ["e"],
    shown: ["E"],
    what: "Edit the best answer into a better one",
    run: () => extras.edit(work.verdicts[0].tiers[0]?.[0] ?? 0),
  },
];
const plain = () => read({ plain: !page.preferences.plain });
const differences = () => read({ differences: !page.preferences.differences });
const PAGE_KEYS = [
  { keys: ["p"], shown: ["P"], what: "Plain text or Markdown", run: plain },
  { keys: ["d"], shown: ["D"], what: "Mark the words in which two answers differ", run: differences },
  { keys: ["g"], shown: ["G"], what: "Guidelines", run: toggleGuidelines },
  { keys: ["?"], shown: ["?"], what: "This help", run: showHelp },
  {
    keys: ["Escape"],
    shown: ["Esc"],
    what: "Leave a text; close what is open",
    run: () => document.activeElement?.blur(),
  },
];
const UNDO = { keys: ["u"], shown: ["U"], what: "Undo the last judgement or skip", run: undo };
const onTask = (row) => ({ ...row, run: (key) => task && row.run(key) });
const TABLE = [...VERDICT_KEYS.map(onTask), UNDO, ...TASK_KEYS.map(onTask), ...PAGE_KEYS];

async function start() {
  const me = await whoIsThere();
  byId("person").textContent = me.name;
  byId("signed-in").hidden = false;
  byId("admin").hidden = me.role !== "admin";
  keeper = new Keeper(me.name);
  listen(TABLE, () => !busy && byId("signin").hidden);
  byId("plain").addEventListener("click", plain);
  byId("differences").addEventListener("click", differences);
  byId("undo").addEventListener("click", undo);
  byId("undo-last").addEventListener("click", undo);
  byId("skip").addEventListener("click", () => task && skip());
  byId("task").addEventListener("submit", (event) => (event.preventDefault(), task && !busy && send()));
  byId("sign-out").addEventListener("click", () => alone(signOut));
  read({});
  const unsent = keeper.unsent;
  await alone(() => (unsent ? deliver(unsent.task, unsent.sending) : next()));
}

start();
