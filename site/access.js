// What the theme adds to a page, made usable without a mouse and told apart by a screen reader.
const mend = () => {
  document.querySelectorAll(".md-typeset__scrollwrap:not([tabindex])").forEach((table) => { table.tabIndex = 0; });
  document.querySelectorAll(".md-code__nav:not([aria-label])").forEach((nav, index) => {
    nav.setAttribute("aria-label", `Code ${nav.closest("[id]")?.id ?? index}`);
  });
};
new MutationObserver(mend).observe(document.body, { childList: true, subtree: true });
mend();
if (location.pathname.includes("/ko/")) document.documentElement.lang = "ko";
