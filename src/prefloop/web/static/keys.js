// Keyboard shortcuts, and the help that lists them: one table, so that the help is never wrong.

import { byId, el } from "./dom.js";
import { prefer, preferences } from "./preferences.js";

const TYPING = "textarea, select, input:not([type=radio], [type=checkbox])";
const ITSELF = "button:not(.chip), summary, a[href]"; // Enter presses it; a chip is pressed by Space, Enter sends
const CHOOSER = "[type=radio], .chip"; // arrows move in it

/** `table`: rows of {keys, shown, what, run(key)}; `ready()` says whether the work listens. */
export function listen(table, ready) {
  for (const { shown, what } of table) {
    const keys = shown.map((key) => el("kbd", {}, key));
    byId("keys").append(el("tr", {}, el("th", { scope: "row" }, keys), el("td", {}, what)));
  }
  byId("keys-on").checked = preferences.keys;
  byId("keys-on").addEventListener("change", (event) => prefer({ keys: event.target.checked }));
  document.addEventListener("keydown", (event) => {
    if (event.defaultPrevented || event.isComposing || event.altKey) return;
    const target = event.target;
    if (document.querySelector("dialog[open]")) return;
    if (target.matches(TYPING)) return inField(event, target, table, ready);
    if (event.ctrlKey || event.metaKey || !preferences.keys || !ready()) return;
    if (event.key === "Enter" && target.matches(ITSELF)) return;
    if (event.key.startsWith("Arrow") && target.matches(CHOOSER)) return;
    const row = table.find(({ keys }) => keys.includes(event.key.length === 1 ? event.key.toLowerCase() : event.key));
    if (!row || (event.repeat && event.key.length === 1) || (event.repeat && event.key === "Enter")) return;
    event.preventDefault();
    row.run(event.key.toLowerCase());
  });
  // Who clicks a button goes on typing shortcuts: Enter must send and not press the button again.
  document.addEventListener("click", (event) => {
    const focused = document.activeElement;
    if (event.detail > 0 && focused?.matches("button:not(dialog button)") && ready()) focused.blur();
  });
}

/** Escape leaves a field, Ctrl+Enter sends from it. */
function inField(event, field, table, ready) {
  if (event.key === "Escape") field.blur();
  else if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && ready()) {
    event.preventDefault();
    table.find(({ keys }) => keys.includes("Enter")).run();
  }
}

export function showHelp() {
  byId("help").showModal();
}
byId("help-open").addEventListener("click", showHelp);
byId("help-close").addEventListener("click", () => byId("help").close());
