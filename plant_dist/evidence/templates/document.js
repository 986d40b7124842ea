"use strict";
(() => {
  const { labels, level } = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const chosen = (name) => document.querySelector(`input[name="${name}"]:checked`);
  const words = byId("words");
  let marked = [];

  const each = ([first, last], act) => {
    for (let number = first; number < last; number += 1) act(byId(`p${number}`));
  };
  const mark = (range, name, title) =>
    each(range, (piece) => {
      // Tokens may share a character; the heavier one stands last and so stays.
      piece.classList.remove("w1", "w2", "w3", "w4", "w5");
      piece.classList.add(name);
      piece.title = title;
      marked.push(piece);
    });
  const clear = () => {
    for (const piece of marked) {
      piece.classList.remove("w1", "w2", "w3", "w4", "w5", "mine", "found");
      piece.title = piece.dataset.gold || "";
    }
    marked = [];
    words.replaceChildren();
  };
  const find = (range) => {
    for (const piece of document.querySelectorAll(".found")) piece.classList.remove("found");
    each(range, (piece) => piece.classList.add("found"));
    const motion = matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth";
    byId(`p${range[0]}`).scrollIntoView({ block: "center", behavior: motion });
  };
  const button = ([first, last, weight]) => {
    let text = "";
    each([first, last], (piece) => { text += piece.textContent; });
    const made = document.createElement("button");
    made.type = "button";
    made.textContent = `${text.trim()} ${weight.toFixed(3)}`;
    made.addEventListener("click", () => find([first, last]));
    return made;
  };

  const show = () => {
    clear();
    const which = chosen("label");
    if (!which) return;
    const branch = chosen("branch").value;
    const label = labels[Number(which.value)];
    const found = label.attention[branch] || { tokens: [], words: [] };
    for (const [first, last, depth, weight] of found.tokens) {
      mark([first, last], level[depth], `${branch} ${weight}`);
    }
    for (const range of label.gold) {
      each(range, (piece) => { piece.classList.add("mine"); marked.push(piece); });
    }
    words.replaceChildren(...found.words.map(button));
    const did = branch === "contribution" ? "raising the score" : `attended, ${branch}`;
    byId("told").textContent = `${label.id}: ${found.tokens.length ? "words" : "no word"} ${did}`;
    // The view can be kept or sent as a link.
    const view = new URLSearchParams({ label: label.id, branch });
    history.replaceState(null, "", `#${view}`);
  };

  const asked = new URLSearchParams(location.hash.slice(1));
  const number = Math.max(labels.findIndex((label) => label.id === asked.get("label")), 0);
  const start = byId(`label${number}`);
  if (start) start.checked = true;
  for (const one of document.querySelectorAll('input[name="branch"]')) {
    if (one.value === asked.get("branch")) one.checked = true;
  }
  document.addEventListener("change", (event) => {
    if (event.target.id === "gold") document.body.classList.toggle("gold", event.target.checked);
    else show();
  });
  show();
})();
