"use strict";
// Theme, hover read-out, filters. The page is complete without any of it.
(() => {
  const root = document.documentElement;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const remember = (value) => { try { localStorage.setItem("prefloop-theme", value); } catch { /* private */ } };
  const recall = () => { try { return localStorage.getItem("prefloop-theme"); } catch { return null; } };
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : dark.matches);
  if (["light", "dark"].includes(recall())) root.dataset.theme = recall();

  function theme() {
    const button = document.getElementById("theme");
    const name = () => { 
      button.textContent = isDark() ? "Light" : "Dark";
      button.setAttribute("aria-label", `${button.textContent} colours`);
    };
    button.hidden = false;
    name();
    dark.addEventListener("change", name);
    button.addEventListener("click", () => {
      root.dataset.theme = isDark() ? "light" : "dark";
      remember(root.dataset.theme);
      name();
    });
  }

  const make = (tag, className, text) => {
    const node = document.createElement(tag);
    if (className) node.className = className;
    if (text) node.textContent = text;
    return node;
  };

  function readout() {
    const box = document.getElementById("readout");
    const NS = document.documentElement.querySelector("svg")?.namespaceURI;
    let owner = null;
    const hide = () => {
      box.hidden = true;
      if (owner) owner.querySelectorAll(".cursor").forEach((node) => node.remove());
      owner = null;
    };

    // The nearest point of all; and, for charts with several series, every other series at the same title.
    function pick(tracks, x, y) {
      let best = null;
      const lines = tracks.some((track) => track[2].length > 3);
      for (const [name, tone, points] of tracks) {
        for (const point of points) {
          const far = Math.abs(point[0] - x) * (lines ? 4 : 1) + Math.abs(point[1] - y);
          if (!best || far < best.far) best = { far, point, name, tone };
        }
      }
      return best;
    }

    function show(svg, tracks, best) {
      hide();
      owner = svg;
      const [x, y, title] = best.point;
      const rows = tracks
        .map(([name, tone, points]) => ({ name, tone, point: points.find((p) => p[2] === title) }))
        .filter((row) => row.point);
      for (const row of rows) {
        const dot = document.createElementNS(NS, "circle");
        dot.setAttribute("class", `cursor dot tone-${row.tone}`);
        dot.setAttribute("cx", row.point[0]);
        dot.setAttribute("cy", row.point[1]);
        dot.setAttribute("r", 4);
        svg.append(dot);
      }
      box.replaceChildren(make("b", "", title));
      for (const row of rows) {
        const line = make("div", "");
        if (row.name) line.append(make("i", `tone-${row.tone}`), make("span", "", row.name));
        line.append(make("strong", "", row.point[3]));
        box.append(line);
      }
      box.hidden = false;
      const place = svg.getBoundingClientRect();
      const view = svg.viewBox.baseVal;
      const left = place.left + (x / view.width) * place.width;
      const top = place.top + (y / view.height) * place.height;
      const half = box.offsetWidth / 2;
      box.style.left = `${Math.min(Math.max(left, half + 8), innerWidth - half - 8) + scrollX}px`;
      box.style.top = `${(top - box.offsetHeight - 12 > 4 ? top - box.offsetHeight - 12 : top + 16) + scrollY}px`;
    }

    // Written by svg.py: a line for the series, a line for each point, an empty line between two series.
    const parse = (text) => text.split("\n\n").filter(Boolean).map((part) => {
      const [head, ...lines] = part.split("\n").map((line) => line.split("\t"));
      return [...head, lines.map(([x, y, ...words]) => [Number(x), Number(y), ...words])];
    });

    document.querySelectorAll("svg[tabindex]").forEach((svg) => {
      const tracks = parse(svg.dataset.tracks);
      const points = tracks.flatMap(([name, tone, list]) => list.map((point) => ({ point, name, tone })));
      if (!points.length) return;
      let at = -1;
      svg.addEventListener("pointermove", (event) => {
        const place = svg.getBoundingClientRect();
        const view = svg.viewBox.baseVal;
        const x = ((event.clientX - place.left) / place.width) * view.width;
        const y = ((event.clientY - place.top) / place.height) * view.height;
        show(svg, tracks, pick(tracks, x, y));
      });
      svg.addEventListener("pointerleave", hide);
      svg.addEventListener("blur", hide);
      svg.addEventListener("keydown", (event) => {
        const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
        if (event.key === "Escape") hide();
        if (!step) return;
        event.preventDefault();
        at = Math.min(Math.max(at + step, 0), points.length - 1);
        show(svg, tracks, points[at]);
      });
    });
    addEventListener("scroll", hide, { passive: true });
  }

  function filters() {
    const bar = document.querySelector(".filters");
    if (!bar) return;
    bar.hidden = false;
    const cards = [...document.querySelectorAll(".card")];
    const buttons = [...bar.querySelectorAll("[data-filter]")];
    for (const button of buttons) {
      const wanted = button.dataset.filter;
      const fits = (card) => wanted === "all" || card.dataset.verdict === wanted;
      button.append(make("span", "", ` ${cards.filter(fits).length}`));
      button.addEventListener("click", () => {
        buttons.forEach((other) => other.setAttribute("aria-pressed", String(other === button)));
        cards.forEach((card) => { card.hidden = !fits(card); });
        document.querySelectorAll(".group").forEach((group) => {
          group.querySelector(".none").hidden = [...group.querySelectorAll(".card")].some(fits);
        });
      });
    }
    const unfold = document.getElementById("unfold");
    unfold.addEventListener("click", () => {
      const open = unfold.textContent === "Open all";
      cards.forEach((card) => { card.open = open; });
      unfold.textContent = open ? "Close all" : "Open all";
    });
  }

  addEventListener("DOMContentLoaded", () => { theme(); readout(); filters(); });
})();
