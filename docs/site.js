// Names and keyboard access for what the theme builds: screen readers tell the parts apart, and the keyboard scrolls
// wide code and tables.
const complete = () => {
  document.querySelector(".md-search")?.setAttribute("aria-label", "Search");
  document.querySelectorAll(".md-code__nav:not([aria-label])").forEach((tools) => {
    tools.setAttribute("role", "group");
    tools.setAttribute("aria-label", "Code block");
  });
  document.querySelectorAll(".md-typeset pre > code, .md-typeset__scrollwrap").forEach((wide) => {
    wide.setAttribute("tabindex", "0");
  });
};
complete();
new MutationObserver(complete).observe(document.body, { childList: true, subtree: true });
