// What somebody says about one task, as plain values. No page in here.
//
// A verdict is a list of tiers, best first: [[2], [0, 1]] has the third answer first and a tie behind it. Answers
// that are in no tier are not ranked yet. A pair is two answers: [[0], [1]], [[1], [0]] or the tie [[0, 1]].

export const FLAGS = ["unsafe", "personal data", "nonsense", "cannot judge", "all bad"];
export const CANNOT_JUDGE = "cannot judge";
export const STRENGTHS = [
  [1, "negligibly"],
  [2, "slightly"],
  [3, "better"],
  [4, "significantly"],
];
const STRONGEST = 4;

/** Where the task stands: nothing said, or what the draft says. A draft of any other shape counts as nothing said. */
export function begin(task, draft) {
  const said = draft && typeof draft === "object" ? draft : {};
  const verdicts = Array.isArray(said.verdicts) ? said.verdicts : [];
  const count = task.answers.length;
  return {
    id: typeof said.id === "string" && said.id ? said.id : newId(),
    verdicts: task.criteria.map((criterion) => {
      const verdict = verdicts.find((v) => v?.criterion === criterion);
      const tiers = tiersOf(Array.isArray(verdict?.ranks) ? verdict.ranks.slice(0, count) : []);
      const known = STRENGTHS.some(([strength]) => strength === verdict?.strength);
      return { criterion, tiers, strength: known ? verdict.strength : null };
    }),
    flags: FLAGS.filter((flag) => Array.isArray(said.flags) && said.flags.includes(flag)),
    reason: typeof said.reason === "string" ? said.reason : "",
    seconds: said.seconds > 0 ? Number(said.seconds) : 0,
    demonstration: demonstrationOf(said.demonstration, count),
  };
}

function demonstrationOf(said, count) {
  if (typeof said?.text !== "string") return null;
  return { answer: Number.isInteger(said.answer) && said.answer < count ? said.answer : null, text: said.text };
}

export function newId() {
  // randomUUID needs a secure context, which a laptop on the office network is not.
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** The draft: a submission in which ranks may be null. */
export function draftOf(work, task) {
  const verdicts = work.verdicts.map(({ criterion, tiers, strength }) => ({
    criterion,
    ranks: ranksOf(tiers, task.answers.length),
    strength,
  }));
  return { ...work, verdicts };
}

/** What is sent. Who cannot judge need not rank: what is missing is then a tie, which counts for nothing. */
export function submissionOf(work, task) {
  const draft = draftOf(work, task);
  for (const verdict of draft.verdicts) {
    if (verdict.ranks.includes(null)) Object.assign(verdict, { ranks: verdict.ranks.map(() => 1), strength: null });
  }
  return { ...draft, seconds: Math.round(work.seconds * 10) / 10, demonstration: changed(work.demonstration, task) };
}

function changed(demonstration, task) {
  if (!demonstration || !demonstration.text.trim()) return null;
  const { answer, text } = demonstration;
  return answer !== null && task.answers[answer].text === text ? null : demonstration;
}

/** The place of the first criterion that still waits for a verdict; -1 when all is said. */
export function missing(work, task) {
  if (work.flags.includes(CANNOT_JUDGE)) return -1;
  return work.verdicts.findIndex(({ tiers }) => tiers.flat().length < task.answers.length);
}

// Ranks and tiers

export function ranksOf(tiers, count) {
  return Array.from({ length: count }, (_, answer) => {
    const place = tiers.findIndex((tier) => tier.includes(answer));
    return place < 0 ? null : place + 1;
  });
}

export function tiersOf(ranks) {
  const used = [...new Set(ranks.filter((rank) => Number.isInteger(rank)))].sort((a, b) => a - b);
  return used.map((rank) => ranks.flatMap((r, answer) => (r === rank ? [answer] : [])));
}

export const without = (tiers, answer) =>
  tiers.map((tier) => tier.filter((a) => a !== answer)).filter((tier) => tier.length);

/** Behind all others; or level with the last of them. */
export const append = (tiers, answer) => [...without(tiers, answer), [answer]];

export function level(tiers, answer) {
  const rest = without(tiers, answer);
  return rest.length ? [...rest.slice(0, -1), inOrder([...rest.at(-1), answer])] : [[answer]];
}

const inOrder = (tier) => [...tier].sort((a, b) => a - b);

/** Half a place towards the front (-1) or the back (+1): out of a tie, or into the next one. */
export function move(tiers, answer, direction) {
  const from = tiers.findIndex((tier) => tier.includes(answer));
  if (tiers[from].length > 1) return dropBetween(tiers, answer, direction < 0 ? from : from + 1);
  const to = from + direction;
  return to < 0 || to >= tiers.length ? tiers : dropOn(tiers, answer, to);
}

/** Into a tie with tier `place`. */
export function dropOn(tiers, answer, place) {
  const rest = tiers.map((tier) => tier.filter((a) => a !== answer));
  const joined = rest.map((tier, i) => (i === place ? inOrder([...tier, answer]) : tier));
  return joined.filter((tier) => tier.length);
}

/** Into a tier of its own in front of tier `place`. */
export function dropBetween(tiers, answer, place) {
  const rest = tiers.map((tier) => tier.filter((a) => a !== answer));
  return [...rest.slice(0, place), [answer], ...rest.slice(place)].filter((tier) => tier.length);
}

// Pairs

export const preferred = ({ tiers }) => (tiers.length === 2 ? tiers[0][0] : null);
export const tied = ({ tiers }) => tiers.length === 1 && tiers[0].length === 2;

/** Answer `a` is better. Said again, it is clearer. */
export function prefer(verdict, a) {
  if (preferred(verdict) === a) return { ...verdict, strength: Math.min((verdict.strength ?? 0) + 1, STRONGEST) };
  return { ...verdict, tiers: [[a], [1 - a]], strength: null };
}

export const tie = (verdict, count) => ({ ...verdict, tiers: [[...Array(count).keys()]], strength: null });

/** One step on the scale from "answer 1, significantly" over the tie to "answer 2, significantly". */
export function lean(verdict, towards) {
  const now = preferred(verdict);
  if (now === null || now === towards) return prefer(verdict, towards);
  if (verdict.strength === null) return tie(verdict, 2);
  return { ...verdict, strength: verdict.strength > 1 ? verdict.strength - 1 : null };
}
