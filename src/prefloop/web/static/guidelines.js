// The guidelines beside the work. Open or closed is remembered; a new version opens them once.

import { byId, focusOn } from "./dom.js";
import { prefer, preferences } from "./preferences.js";
import { ask } from "./session.js";

let version;

/** Fetch them when the task was given with a version that is not the one here. */
export async function keepGuidelines(wanted) {
  if (wanted === version) return;
  const newest = await ask("GET", "/guidelines");
  version = newest.version;
  byId("guidelines-toggle").hidden = version === null;
  if (version === null) return show(false);
  byId("guidelines-version").textContent = `version ${version}`;
  byId("guidelines-text").innerHTML = newest.html; // sanitised by the server (render.py)
  // Where there is room beside the work they are open from the start; a phone shows them when asked.
  const seen = preferences.guidelines;
  show(seen?.version === version ? seen.open : matchMedia("(min-width: 72rem)").matches);
}

function show(open) {
  byId("guidelines").hidden = !open;
  byId("guidelines-toggle").setAttribute("aria-expanded", String(open));
}

let before = null; // where the focus was

export function toggleGuidelines() {
  const pane = byId("guidelines");
  if (byId("guidelines-toggle").hidden) return;
  const open = pane.hidden, inside = pane.contains(document.activeElement);
  show(open);
  prefer({ guidelines: { version, open } });
  if (open) {
    before = document.activeElement;
    focusOn(byId("guidelines-heading"));
    pane.scrollIntoView({ block: "nearest" });
  } else if (inside) focusOn(before?.isConnected && before !== document.body ? before : byId("task-heading"));
}

byId("guidelines-toggle").addEventListener("click", toggleGuidelines);
byId("guidelines-close").addEventListener("click", toggleGuidelines);
byId("guidelines").addEventListener("keydown", (event) => {
  if (event.key === "Escape") toggleGuidelines();
});
