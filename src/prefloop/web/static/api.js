// Requests to the server: what was refused, what could not be reached, and trying again.

const base = document.documentElement.dataset.base;
const SECONDS = 20; // a connection that is silent for longer counts as lost
const LONGEST_WAIT = 30;

/** The server understood and said no. */
export class Refused extends Error {
  constructor(status, { what, remedy } = {}) {
    super([what || `The server answered ${status}.`, remedy].filter(Boolean).join(" "));
    this.status = status;
  }
}

/** Nobody knows whether the server heard it: the same request can be sent again. */
export class Unreachable extends Error {}

/** JSON in, JSON out. `keepalive` lets it outlive the page. */
export async function call(method, path, body, { keepalive = false, seconds = SECONDS } = {}) {
  const request = { method, keepalive, cache: "no-store", credentials: "same-origin" };
  if (body !== undefined) {
    request.headers = { "Content-Type": "application/json" };
    request.body = JSON.stringify(body);
  }
  if (!keepalive) request.signal = AbortSignal.timeout(seconds * 1000);
  let response, answer;
  try {
    response = await fetch(`${base}/api${path}`, request);
    if (response.status === 204) return null;
    answer = await response.json();
  } catch {
    // No answer, or half an answer; a refusal that is not JSON comes from something between here and the server.
    throw new Unreachable(response ? `The server answered ${response.status}.` : "No connection to the server.");
  }
  if (response.ok) return answer;
  if (response.status >= 500 || response.status === 408 || response.status === 429)
    throw new Unreachable(answer.error?.what || `The server answered ${response.status}.`);
  throw new Refused(response.status, answer.error);
}

const waiting = new Set(); // requests between two attempts: how to end that
let troubled = 0; // requests that failed and go on

/** End the wait between two attempts, of every request that waits. */
export function tryNow() {
  for (const wake of waiting) wake();
}
addEventListener("online", tryNow);

/** Attempt until the server is reached. `onTrouble(error)` after each failure, `onTrouble(null)` when all is over. */
export async function persist(attempt, onTrouble) {
  let wait = 0;
  const over = () => wait && --troubled === 0 && onTrouble(null);
  for (;;) {
    try {
      const answer = await attempt();
      over();
      return answer;
    } catch (error) {
      if (!(error instanceof Unreachable)) {
        over();
        throw error;
      }
      troubled += wait ? 0 : 1;
      onTrouble(error);
    }
    wait = Math.min(2 * wait || 1, LONGEST_WAIT);
    await new Promise((resolve) => {
      const wake = () => (clearTimeout(timer), waiting.delete(wake), resolve());
      const timer = setTimeout(wake, wait * 1000);
      waiting.add(wake);
    });
  }
}
