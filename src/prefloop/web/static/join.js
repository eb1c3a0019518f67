// Accept an invite. Its secret is in the fragment of the address, which no server and no log ever sees.

import { call } from "./api.js";
import { byId, focusOn } from "./dom.js";

const form = byId("join-form"), problem = byId("join-problem");
const invite = location.hash.slice(1);

function say(text) {
  problem.textContent = text;
  problem.hidden = !text;
}

form.hidden = !invite;
byId("no-invite").hidden = Boolean(invite);

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const button = form.querySelector("button");
  button.disabled = true;
  say("");
  try {
    await call("POST", "/session", { invite, name: byId("name").value.trim() });
    location.replace(`${document.documentElement.dataset.base}/`);
  } catch (error) {
    button.disabled = false;
    say(error.message);
    focusOn(byId("name"));
  }
});
addEventListener("hashchange", () => location.reload());

// Whoever is here already need not join again.
call("GET", "/me").then(
  (me) => {
    byId("me").textContent = me.name;
    byId("already").hidden = false;
  },
  () => {},
);
