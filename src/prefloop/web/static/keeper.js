// What is said is kept twice before it is sent: in this browser at once, on the server a moment later.

import { Refused, call } from "./api.js";

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
  #task = null;
  #draft = null;
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
    this.#task = task.id;
    this.#draft = { ...draft, at: Date.now() };
    write(this.#name, { task: task.id, draft: this.#draft });
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.save(), MOMENT);
  }

  /** The draft to the server, if it does not have it yet. */
  async save(options) {
    const draft = this.#draft;
    if (!draft) return;
    this.#drop();
    try {
      await call("PUT", `/tasks/${encodeURIComponent(this.#task)}/draft`, { draft }, options);
    } catch (error) {
      // The next change tries again. A refusal is told when the judgement itself is sent.
      if (!(error instanceof Refused)) this.#draft ??= draft;
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
    clearTimeout(this.#timer);
    this.#draft = null;
  }
}
