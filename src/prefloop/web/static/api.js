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

let wake = () => {};

/** End the wait between two attempts. */
export function tryNow() {
  wake();
}
addEventListener("online", tryNow);

/** Attempt until the server is reached. `onTrouble(error)` after each failure, `onTrouble(null)` when it is over. */
export async function persist(attempt, onTrouble) {
  let wait = 0;
  for (;;) {
    try {
      const answer = await attempt();
      if (wait) onTrouble(null);
      return answer;
    } catch (error) {
      if (!(error instanceof Unreachable)) {
        if (wait) onTrouble(null);
        throw error;
      }
      onTrouble(error);
    }
    wait = Math.min(2 * wait || 1, LONGEST_WAIT);
    await new Promise((resolve) => {
      const timer = setTimeout(resolve, wait * 1000);
      wake = () => (clearTimeout(timer), resolve());
    });
  }
}
