// What is said is kept twice before it is sent: in this browser at once, on the server a moment later.

import { Refused, call } from "./api.js";
import { ask } from "./session.js";

const MOMENT = 700; // milliseconds without a change

const slot = (name) => `prefloop:work:${name}`;

function read(name) {
  try {
    return JSON.parse(localStorage.getItem(slot(name)));
  } catch {
    return null; // storage is off, or holds something else
  }
}

function write(name, kept) {
  try {
    if (kept) localStorage.setItem(slot(name), JSON.stringify(kept));
    else localStorage.removeItem(slot(name));
  } catch {
    // The server still has the draft.
  }
}

/** Keeps one task's draft for one person. */
export class Keeper {
  #name;
  #said = null; // {task, draft}: the last word on a task that was not sent yet
  #unsaved = false;
  #saving = null; // the last request, perhaps under way
  #timer = 0;

  constructor(name) {
    this.#name = name;
    addEventListener("pagehide", () => this.save({ keepalive: true }));
    document.addEventListener("visibilitychange", () => {
      if (document.hidden) this.save({ keepalive: true });
    });
  }

  /** {task, sending}: a judgement whose arrival is not certain, from before a reload. */
  get unsent() {
    const kept = read(this.#name);
    return kept?.sending && typeof kept.task === "string" ? kept : null;
  }

  /** The newer of the draft that came with the task and the one that this browser kept. */
  newest(task) {
    const kept = read(this.#name);
    return kept?.task === task.id && !kept.sending && !(task.draft?.at > kept.draft?.at) ? kept.draft : task.draft;
  }

  change(task, draft) {
    this.#said = { task: task.id, draft: { ...draft, at: Date.now() } };
    this.#unsaved = true;
    write(this.#name, this.#said);
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.save(), MOMENT);
  }

  /** The draft to the server, if it does not have it yet. */
  save(options) {
    if (this.#unsaved) this.#saving = this.#put(call, options);
  }

  /** Until the server has it: what comes next takes the task away from this page. */
  async saved() {
    await this.#saving;
    if (this.#unsaved) await (this.#saving = this.#put(ask));
  }

  async #put(request, options) {
    const said = this.#said;
    this.#wait();
    try {
      await request("PUT", `/tasks/${encodeURIComponent(said.task)}/draft`, { draft: said.draft }, options);
    } catch (error) {
      // The next change tries again. A refusal is told when the judgement itself is sent. What was said anew or sent
      // meanwhile must not be overwritten by what came before it, least of all when that is about another task.
      if (!(error instanceof Refused) && this.#said === said) this.#unsaved = true;
    }
  }

  /** From here on the judgement counts as sent, until `settled` says what became of it. */
  sending(task, submission) {
    this.#drop();
    write(this.#name, { task: task.id, sending: submission });
  }

  settled() {
    this.#drop();
    write(this.#name, null);
  }

  #drop() {
    this.#wait();
    this.#said = null;
  }

  /** Nothing to save until the next change. */
  #wait() {
    clearTimeout(this.#timer);
    this.#unsaved = false;
  }
}
