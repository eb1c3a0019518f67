// Words in which two answers differ, marked in place. Works on text nodes, so whatever they hold stays text.

import { el } from "./dom.js";

const MOST_CELLS = 9_000_000; // of the table below: two answers of 3,000 words

const WORD = /\p{Script=Han}|[\p{L}\p{M}\p{N}]+|[^\s\p{L}\p{M}\p{N}]/gu;

/** Mark in both, or say that they are too long (false). */
export function markDifferences(left, right) {
  const [a, b] = [wordsOf(left), wordsOf(right)];
  const same = common(a.map((w) => w.word), b.map((w) => w.word));
  if (!same) return false;
  mark(a.filter((_, i) => !same[0].has(i)));
  mark(b.filter((_, i) => !same[1].has(i)));
  return true;
}

function wordsOf(root) {
  const words = [];
  const walker = document.createTreeWalker(root, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode())
    for (const match of node.data.matchAll(WORD)) words.push({ word: match[0], node, from: match.index });
  return words;
}

/** The places of a longest common subsequence, in `a` and in `b`; null when the table would be too large. */
export function common(a, b) {
  const inA = new Set(), inB = new Set();
  let start = 0, end = 0;
  while (start < Math.min(a.length, b.length) && a[start] === b[start]) start++;
  while (end < Math.min(a.length, b.length) - start && a.at(-1 - end) === b.at(-1 - end)) end++;
  for (let i = 0; i < start; i++) inA.add(i), inB.add(i);
  for (let i = 1; i <= end; i++) inA.add(a.length - i), inB.add(b.length - i);
  const n = a.length - start - end, m = b.length - start - end, width = m + 1;
  if ((n + 1) * width > MOST_CELLS) return null;
  const longest = new Uint16Array((n + 1) * width); // [i, j]: from word i of a and word j of b to the ends
  for (let i = n - 1; i >= 0; i--)
    for (let j = m - 1; j >= 0; j--)
      longest[i * width + j] = a[start + i] === b[start + j]
        ? longest[(i + 1) * width + j + 1] + 1
        : Math.max(longest[(i + 1) * width + j], longest[i * width + j + 1]);
  for (let i = 0, j = 0; i < n && j < m; ) {
    if (a[start + i] === b[start + j]) inA.add(start + i++), inB.add(start + j++);
    else if (longest[(i + 1) * width + j] >= longest[i * width + j + 1]) i++;
    else j++;
  }
  return [inA, inB];
}

/** Neighbouring words become one mark. From the end, so that earlier positions in a text node stay true. */
function mark(words) {
  const runs = [];
  for (const { word, node, from } of words) {
    const last = runs.at(-1);
    if (last?.node === node && !node.data.slice(last.to, from).trim()) last.to = from + word.length;
    else runs.push({ node, from, to: from + word.length });
  }
  for (const { node, from, to } of runs.reverse()) {
    const rest = node.splitText(from);
    rest.splitText(to - from);
    const marked = el("mark");
    rest.replaceWith(marked);
    marked.append(rest);
  }
}
