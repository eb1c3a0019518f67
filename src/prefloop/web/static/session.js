// Who is signed in, and requests that outlast a lost connection and a session that ended.

import { Refused, call, persist, tryNow } from "./api.js";
import { byId, focusOn } from "./dom.js";

let person = null;
let signingIn = null; // shared by all requests that wait for it

/** The request's answer. Waits while there is no connection or no session; throws Refused for any other no. */
export async function ask(method, path, body) {
  for (;;) {
    try {
      return await persist(() => call(method, path, body), showTrouble);
    } catch (error) {
      if (!(error instanceof Refused) || error.status !== 401) throw error;
      await (signingIn ??= signIn().finally(() => (signingIn = null)));
    }
  }
}

export async function whoIsThere() {
  const [, key] = location.hash.match(/^#(?:key=)?([\w-]{16,})$/) ?? [];
  if (key) {
    history.replaceState(null, "", location.pathname); // it must not stay in the address or be bookmarked
    await persist(() => call("POST", "/session", { key }), showTrouble).catch(() => {}); // an old link: ask, below
  }
  return (person = await ask("GET", "/me"));
}

export async function signOut() {
  await ask("DELETE", "/session");
  location.reload();
}

/** Hides the work behind a form until it succeeds; the work stays in the page. */
async function signIn() {
  const section = byId("signin"), form = byId("signin-form"), problem = byId("signin-problem");
  const behind = [...byId("main").children].filter((node) => node !== section && !node.hidden);
  const before = document.activeElement;
  for (const node of behind) node.hidden = true;
  byId("signin-again").hidden = person === null;
  section.hidden = false;
  focusOn(byId("signin-heading"));
  for (let done = false; !done; ) {
    await submitted(form);
    const pasted = byId("signin-key").value.trim();
    const [, invite] = pasted.split("/join#");
    if (invite) return location.assign(`${document.documentElement.dataset.base}/join#${invite}`);
    try {
      const me = await call("POST", "/session", { key: pasted.replace(/^.*#/, "").replace(/^key=/, "") });
      if (person && me.name !== person.name) {
        location.reload(); // somebody else's work is not theirs to send: nothing goes on here
        return new Promise(() => {});
      }
      done = true;
    } catch (error) {
      problem.textContent = error.message;
      focusOn(byId("signin-key"));
    }
  }
  problem.textContent = byId("signin-key").value = "";
  section.hidden = true;
  for (const node of behind) node.hidden = false;
  focusOn(before);
}

const submitted = (form) =>
  new Promise((resolve) => {
    form.addEventListener("submit", (event) => (event.preventDefault(), resolve()), { once: true });
  });

function showTrouble(error) {
  const kept = "What you said is kept in this browser and is sent as soon as the server can be reached.";
  byId("trouble").hidden = !error;
  if (error) byId("trouble-text").textContent = `${error.message} ${kept}`;
}
byId("try-now")?.addEventListener("click", tryNow);
