// What can be said besides the verdict: flags, a reason, a better answer.

import { byId, el, focusOn } from "./dom.js";
import { FLAGS } from "./judgement.js";

/** `get()` gives the work on this task, `set(part)` changes a part of it. Returns {sync, edit}. */
export function notes(task, get, set) {
  const flags = byId("flags");
  flags.replaceChildren(
    ...FLAGS.map((flag) => {
      const box = el("input", { type: "checkbox", value: flag, onchange: setFlags });
      return el("label", { class: "option" }, box, el("span", {}, flag));
    }),
  );
  function setFlags() {
    set({ flags: [...flags.querySelectorAll(":checked")].map((input) => input.value) });
  }
  const reason = byId("reason"), editor = byId("edited");
  reason.oninput = () => set({ reason: reason.value });
  editor.oninput = () => set({ demonstration: { answer: get().demonstration.answer, text: editor.value } });
  byId("discard").onclick = () => {
    set({ demonstration: null });
    focusOn(byId("own"));
  };
  byId("own").onclick = () => edit(null);

  /** Open the editor with an answer's text, or empty for `null`. What is being written is never replaced. */
  function edit(answer) {
    const text = answer === null ? "" : task.answers[answer].text;
    if (!get().demonstration) set({ demonstration: { answer, text } });
    editor.focus();
    if (answer !== null) editor.setSelectionRange(0, 0);
  }

  function sync() {
    const { flags: set, reason: why, demonstration } = get();
    for (const input of flags.querySelectorAll("input")) input.checked = set.includes(input.value);
    if (reason.value !== why) reason.value = why;
    byId("demonstration").hidden = !demonstration;
    byId("own").hidden = Boolean(demonstration);
    if (!demonstration) return;
    const { answer } = demonstration;
    byId("edited-label").textContent = answer === null ? "Your own answer" : `Your version of answer ${answer + 1}`;
    if (editor.value !== demonstration.text) editor.value = demonstration.text;
  }
  return { sync, edit };
}
