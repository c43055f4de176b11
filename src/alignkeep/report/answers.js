// Filters and sorts the answers of the page. Without it all of them are shown. It reads numbers from attributes and
// makes no markup: answers are text of strangers.
"use strict";
(() => {
  const section = document.getElementById("answers");
  const filters = section.querySelector(".filters");
  const status = filters.querySelector(".status");
  const more = section.querySelector(".show-more");
  const asked = Object.fromEntries([...filters.querySelectorAll("[data-by]")].map(one => [one.dataset.by, one]));
  const first = section.querySelectorAll(".comparison:not(.rest)").length;
  const step = 100;
  const rows = [...section.querySelectorAll(".comparison")].map((node, place) => ({
    node, place, list: node.parentNode, topic: node.dataset.topic, order: +node.dataset.order,
    changes: +node.dataset.changes, differs: "differs" in node.dataset,
    answers: [...node.querySelectorAll(".answer")].map(one => ({
      model: one.dataset.model, verdict: one.dataset.verdict, changed: one.classList.contains("changed"),
    })),
  }));
  const lists = new Set(rows.map(row => row.list));
  let most = first, sorted = "";

  const fits = row => {
    const changed = asked.changed.checked;
    const one = answer => (!asked.model.value || answer.model === asked.model.value)
      && (!asked.verdict.value || answer.verdict === asked.verdict.value) && (!changed || answer.changed);
    return (!asked.topic.value || row.topic === asked.topic.value) && (!asked.differs?.checked || row.differs)
      && row.answers.some(one);
  };
  const orders = {
    "": (a, b) => a.place - b.place,
    changes: (a, b) => b.changes - a.changes || a.place - b.place,
    order: (a, b) => a.order - b.order || a.place - b.place,
  };
  const show = () => {
    const isMoved = sorted !== "" || asked.order.value !== "";
    if (asked.order.value !== sorted) rows.sort(orders[sorted = asked.order.value]);
    const found = rows.filter(fits), shown = new Set(found.slice(0, most));
    for (const row of rows) row.node.hidden = !shown.has(row);
    // Of thousands only those that are seen are moved.
    for (const list of isMoved ? lists : []) list.prepend(...[...shown].filter(row => row.list === list).map(row => row.node));
    status.textContent = `${shown.size} of ${found.length} fitting prompts shown, ${rows.length} on this page.`;
    more.hidden = shown.size === found.length;
    more.textContent = `Show ${Math.min(step, found.length - shown.size)} more`;
  };
  filters.addEventListener("change", () => { most = first; show(); });
  more.addEventListener("click", () => {
    const next = rows.filter(fits)[most];
    most += step;
    show();
    if (more.hidden && next) { next.node.tabIndex = -1; next.node.focus(); }
  });
  rows.forEach(row => row.node.classList.remove("rest"));
  filters.hidden = false;
  show();
})();
