// Elements without markup: text only ever becomes a text node.

export const byId = (id) => document.getElementById(id);

/** A new element. `on…` properties are listeners, others are attributes; false, null and undefined are left out. */
export function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== false));
  return node;
}

/** Tell a screen reader what happened. The same words twice are said twice. */
export function announce(text) {
  const live = byId("live");
  live.textContent = "";
  requestAnimationFrame(() => (live.textContent = text));
}

/** Focus without the page jumping. */
export function focusOn(node) {
  node?.focus({ preventScroll: true });
}
