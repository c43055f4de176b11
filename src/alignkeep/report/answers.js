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
    node, place, parent: node.parentNode, topic: node.dataset.topic, order: +node.dataset.order,
    changes: +node.dataset.changes, differs: "differs" in node.dataset,
    answers: [...node.querySelectorAll(".answer")].map(one => ({
      model: one.dataset.model, verdict: one.dataset.verdict, changed: one.classList.contains("changed"),
    })),
  }));
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
    if (asked.order.value !== sorted) {
      sorted = asked.order.value;
      rows.sort(orders[sorted]).forEach(row => row.parent.append(row.node));
    }
    let found = 0;
    for (const row of rows) row.node.hidden = !(fits(row) && ++found <= most);
    const shown = Math.min(found, most);
    status.textContent = `${shown} of ${found} fitting prompts shown, ${rows.length} on this page.`;
    more.hidden = shown === found;
    more.textContent = `Show ${Math.min(step, found - shown)} more`;
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
