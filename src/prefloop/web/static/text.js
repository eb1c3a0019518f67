// Model text in the page: the server's sanitised HTML, or the text itself with what cannot be seen marked.

import { el } from "./dom.js";

// The same list as CONTROLS in render.py, and NUL, which only the text can hold.
const CONTROL_RUN =
  /([\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f-\u009f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\u00ad\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180e\u200b\u2028\u2029\u2060-\u2065\u206a-\u206f\u2800\u3164\ufe00-\ufe0d\ufeff\uffa0\ufff9-\ufffb\u{e0000}-\u{e0fff}])\1*/gu;

function name(run) {
  const [first, ...rest] = run;
  const code = `U+${first.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}`;
  return rest.length ? `${code} ×${rest.length + 1}` : code;
}

function plain(text) {
  if (!text.trim()) return el("p", { class: "empty" }, "empty");
  const parts = [];
  let from = 0;
  for (const match of text.matchAll(CONTROL_RUN)) {
    parts.push(text.slice(from, match.index), el("span", { class: "control" }, name(match[0])));
    from = match.index + match[0].length;
  }
  return el("p", { class: "plain" }, ...parts, text.slice(from));
}

/** Fill `node` with a piece of the API, {html, text}. */
export function fill(node, piece, asPlain) {
  if (asPlain) node.replaceChildren(plain(piece.text));
  else node.innerHTML = piece.html; // sanitised by the server (render.py)
  for (const wide of node.querySelectorAll(".table")) {
    // Scrolls sideways by itself, so the keyboard must reach it.
    if (wide.scrollWidth > wide.clientWidth) {
      wide.tabIndex = 0;
      wide.setAttribute("role", "group");
      wide.setAttribute("aria-label", "Wide table");
    }
  }
}
