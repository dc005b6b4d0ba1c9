// Names and keyboard access for what the theme builds: screen readers tell the parts apart, and the keyboard scrolls
// wide code and tables. The theme takes the access to code away where there is no mouse.
let nBlocks = 0;
const complete = () => {
  document.querySelector(".md-search")?.setAttribute("aria-label", "Search");
  document.querySelectorAll(".md-code__nav:not([aria-label])").forEach((tools) => {
    tools.setAttribute("aria-label", `Tools of code block ${++nBlocks}`);
  });
  document.querySelectorAll(":is(.md-typeset pre > code, .md-typeset__scrollwrap):not([tabindex])").forEach((wide) => {
    wide.setAttribute("tabindex", "0");
  });
};
complete();
new MutationObserver(complete).observe(document.body, {
  childList: true,
  subtree: true,
  attributeFilter: ["tabindex"],
});
