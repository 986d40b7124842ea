"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const rows = [...document.querySelectorAll("tbody tr")];
  const kind = () => {
    if (byId("missed").checked) return byId("rare").checked ? "missedRare" : "missed";
    return byId("rare").checked ? "rare" : null;
  };
  const filter = () => {
    const wanted = kind();
    const words = byId("words").value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of rows) {
      const text = row.dataset.words;
      const fits = (!wanted || Number(row.dataset[wanted]) > 0) && words.every((one) => text.includes(one));
      row.hidden = !fits;
      shown += fits;
    }
    byId("count").textContent = `${shown} of ${rows.length} documents`;
  };
  document.addEventListener("input", filter);
  document.querySelector("form").addEventListener("submit", (event) => event.preventDefault());
  filter();
})();
