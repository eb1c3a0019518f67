// The administrator's page: shows what the API says, asks it for changes, and shows the outcome.

import { Refused, call } from "./api.js";
import { announce, byId, el } from "./dom.js";

const day = new Intl.DateTimeFormat(undefined, { dateStyle: "medium" });
const number = new Intl.NumberFormat();
const on = (moment) => day.format(new Date(moment));

let me = "";
let versions = [];

async function load() {
  const [stats, batches, people, invites, tokens] = await Promise.all(
    ["/stats", "/batches", "/people", "/invites", "/tokens"].map((path) => call("GET", path)),
  );
  showStats(stats);
  showBatches(batches);
  showPeople(people);
  showInvites(invites);
  showTokens(tokens);
}

function showStats(stats) {
  const kinds = ["prompts", "completions", "judgements", "demonstrations"];
  byId("numbers").replaceChildren(...kinds.map((kind) => el("div", {}, el("dt", {}, kind), el("dd", {}, number.format(stats[kind])))));
}

/** Takes seconds where there is much to count, so the page does not wait for it. */
async function showStatistics() {
  const { html } = await call("GET", "/statistics", undefined, { seconds: 600 });
  const parsed = new DOMParser().parseFromString(html, "text/html");
  byId("plots").replaceChildren(...[...parsed.body.childNodes].map((node) => document.importNode(node, true)));
  byId("plots").ariaBusy = "false";
}

function showBatches(batches) {
  byId("no-batches").hidden = batches.length > 0;
  byId("batches").replaceChildren(
    ...batches.map((batch) =>
      el(
        "tr",
        {},
        el("th", { scope: "row" }, batch.name),
        el("td", {}, judged(batch)),
        el("td", {}, batch.criteria.join(", ")),
        el("td", {}, number.format(batch.overlap)),
        el("td", {}, batch.closed ? "closed" : "open"),
        el("td", {}, batch.closed ? reopening(batch) : closing(batch)),
      ),
    ),
  );
}

function judged(batch) {
  const done = number.format(batch.done);
  if (batch.target === null) return done;
  const bar = el("progress", { max: batch.target, value: Math.min(batch.done, batch.target), "aria-label": `${batch.name}: judged` });
  return [`${done} of ${number.format(batch.target)} `, bar];
}

const closing = (batch) =>
  action("Close", batch.name, `${batch.name} is closed.`, () => call("POST", `/batches/${encodeURIComponent(batch.name)}/close`));

function reopening({ name, criteria, overlap, target, gold_share, control_share, lease_seconds }) {
  const settings = { name, criteria, overlap, target, gold_share, control_share, lease_seconds };
  return action("Open", name, `${name} is open.`, () => call("POST", "/batches", settings));
}

function showPeople(people) {
  byId("people").replaceChildren(
    ...people.map((person) => {
      const path = `/people/${encodeURIComponent(person.name)}`;
      const change = person.revoked
        ? action("Let in again", person.name, `${person.name} may come back.`, () => call("POST", `${path}/restore`))
        : action("Send away", person.name, `${person.name} is out.`, () => call("POST", `${path}/revoke`));
      const again = person.revoked ? "" : signingInAgain(person.name);
      return row(person.name, `${person.name === me ? "you, " : ""}${person.role}, ${person.revoked ? `sent away on ${on(person.revoked)}` : `since ${on(person.created)}`}`, again, person.name === me ? "" : change);
    }),
  );
  const chosen = byId("token-name").value;
  const may = people.filter((person) => !person.revoked).map((person) => el("option", {}, person.name));
  byId("token-name").replaceChildren(...may);
  if (chosen) byId("token-name").value = chosen;
}

function showInvites(invites) {
  const open = invites.filter((invite) => !invite.ended && new Date(invite.expires) > new Date());
  byId("invites").replaceChildren(
    ...open.map((invite) => {
      const whom = invite.name || "anybody";
      const withdrawal = action("Withdraw", `invite for ${whom}`, "The invite is withdrawn.", () => call("DELETE", `/invites/${invite.id}`));
      return row(`For ${whom}`, `${invite.role}, until ${on(invite.expires)}, by ${invite.author}`, withdrawal);
    }),
  );
}

function showTokens(tokens) {
  byId("tokens").replaceChildren(
    ...tokens.map((token) => {
      const what = token.label || "no label";
      const drop = action("Drop", `token of ${token.person}, ${what}`, "The token is worthless now.", () => call("DELETE", `/tokens/${token.id}`));
      return row(token.person, `${what}, since ${on(token.created)}${token.expires ? `, until ${on(token.expires)}` : ""}`, drop);
    }),
  );
}

/** For whoever lost their session: an invite is good for one sign-in only. */
function signingInAgain(name) {
  return action("New link", name, "The link is made.", async () => {
    const made = await call("POST", "/tokens", { name, label: "sign-in link", days: 7 });
    reveal(byId("people").closest("section"), "person-link", made.url);
  });
}

const row = (name, what, ...buttons) =>
  el(
    "li",
    {},
    el("span", { class: "who", dir: "auto" }, name),
    el("span", { class: "hint", dir: "auto" }, what),
    el("span", { class: "actions" }, ...buttons),
  );

/** A button that asks for a change and shows what came of it. */
function action(text, of, said, ask) {
  const button = el("button", { type: "button", onclick: () => attempt(button.closest("section"), said, ask) }, text, el("span", { class: "unseen" }, ` ${of}`));
  return button;
}

async function attempt(section, said, ask) {
  const problem = section.querySelector(".problem") ?? section.appendChild(el("p", { class: "problem", role: "alert" }));
  problem.hidden = true;
  try {
    const answer = await ask();
    await load();
    announce(said);
    // The button that was pressed is gone: go on where it was.
    if (!document.activeElement || document.activeElement === document.body) {
      const heading = section.querySelector("h2");
      heading.tabIndex = -1;
      heading.focus({ preventScroll: true });
    }
    return answer;
  } catch (error) {
    problem.textContent = error.message;
    problem.hidden = false;
    return null;
  }
}

function onSubmit(form, handle) {
  byId(form).addEventListener("submit", async (event) => {
    event.preventDefault();
    const button = byId(form).querySelector("button");
    button.disabled = true;
    await handle(byId(form).closest("section"), Object.fromEntries(new FormData(byId(form))));
    button.disabled = false;
  });
}

function reveal(section, field, text) {
  section.querySelector(".made").hidden = false;
  byId(field).value = text;
  byId(field).focus();
  byId(field).select();
}

onSubmit("invite-form", async (section, { name, role, days }) => {
  const made = await attempt(section, "The link is made.", () => call("POST", "/invites", { name: name.trim(), role, days: Number(days) }));
  if (made) reveal(section, "invite-link", made.url);
});

onSubmit("token-form", async (section, { name, label }) => {
  const made = await attempt(section, "The token is made.", () => call("POST", "/tokens", { name, label }));
  if (made) reveal(section, "token-text", made.token);
});

onSubmit("guidelines-form", async (section) => {
  const text = byId("guidelines-text").value;
  const made = await attempt(section, "The guidelines are saved.", () => call("POST", "/guidelines", { text }));
  if (made) await showGuidelines();
});

async function showGuidelines() {
  versions = await call("GET", "/guidelines/versions");
  const options = versions.map((one) => el("option", { value: one.version }, `${one.version}, ${on(one.created)}, ${one.author}`));
  byId("guidelines-which").replaceChildren(...options.reverse());
  byId("guidelines-which").disabled = !versions.length;
  byId("guidelines-text").value = versions.at(-1)?.text ?? "";
}

byId("guidelines-which").addEventListener("change", ({ target }) => {
  byId("guidelines-text").value = versions.find((one) => one.version === Number(target.value)).text;
});

for (const button of document.querySelectorAll("[data-copies]")) {
  button.addEventListener("click", async () => {
    const field = byId(button.dataset.copies);
    field.select();
    try {
      await navigator.clipboard.writeText(field.value);
    } catch {
      document.execCommand("copy"); // without TLS there is no clipboard to ask for
    }
    announce("Copied.");
  });
}

async function begin() {
  try {
    byId("person").textContent = me = (await call("GET", "/me")).name;
    await load();
    await showGuidelines();
    byId("sections").hidden = false;
    await showStatistics();
  } catch (error) {
    byId("refused").textContent = error instanceof Refused ? error.message : `${error.message} Load the page again.`;
    byId("refused").hidden = false;
  }
}

await begin();
