// How this reader likes the page, remembered in this browser.

const SLOT = "prefloop:page";
const DEFAULTS = { plain: false, differences: false, guidelines: null, keys: true };

function stored() {
  try {
    return JSON.parse(localStorage.getItem(SLOT)) ?? {};
  } catch {
    return {};
  }
}

export const preferences = { ...DEFAULTS, ...stored() };

export function prefer(changes) {
  Object.assign(preferences, changes);
  try {
    localStorage.setItem(SLOT, JSON.stringify(preferences));
  } catch {
    // Until the page is closed, then.
  }
}
