// Sent with optuna-dashboard's pages: adds the names, roles and landmarks that screen readers and keyboards need.
(() => {
  "use strict";
  const all = (selector, act) => document.querySelectorAll(selector).forEach(act);
  const give = (element, name, value) => {
    if (element.getAttribute(name) !== value) element.setAttribute(name, value);
  };
  const text = (element) => (element ? element.textContent : "").replace(/[\u200b\s]+/g, " ").trim();
  const isNamed = (element) => {
    const ids = (element.getAttribute("aria-labelledby") || "").split(" ").filter(Boolean);
    const labels = ids.map((id) => document.getElementById(id)).concat([...(element.labels || [])]);
    return labels.some((label) => label && label !== element && text(label)) || (element.title && text(element));
  };
  // "ChevronLeftIcon" is read as "chevron left".
  const iconName = (icon) => icon.dataset.testid.replace(/Icon$/, "").replace(/(?!^)([A-Z])/g, " $1").toLowerCase();

  const nameControls = () => {
    all("button, [role=button]", (button) => {
      const icon = button.querySelector("svg[data-testid]");
      if (icon && !text(button) && !button.title) give(button, "aria-label", button.getAttribute("aria-label") || iconName(icon));
    });
    all("main input:not([type=hidden]):not([aria-hidden]), [role=combobox]", (control) => {
      if (isNamed(control)) return;
      const group = control.closest(".MuiFormControl-root") || control.closest(".MuiGrid-root, .MuiBox-root");
      const label = group && group.querySelector("label, legend, .MuiFormLabel-root");
      give(control, "aria-label", text(label) || control.placeholder || text(control) || "choice");
    });
  };

  const nameRegions = () => {
    all(".MuiDrawer-root", (drawer) => {
      give(drawer, "role", "navigation");
      give(drawer, "aria-label", "pages and settings");
    });
    all(".MuiModal-root.MuiDrawer-root", (drawer) => drawer.removeAttribute("role"));
    all("ul > hr, ul > div", (child) => {
      if (child.tagName === "HR") give(child, "aria-hidden", "true");
    });
    all("ul", (list) => {
      if (![...list.children].some((child) => child.tagName === "DIV")) return;
      give(list, "role", "group");
      list.querySelectorAll("li").forEach((item) => give(item, "role", "none"));
    });
    all("li", (item) => {
      if (item.parentElement && !["UL", "OL"].includes(item.parentElement.tagName)) give(item, "role", "none");
    });
    all("#dashboard *", (element) => {
      const style = getComputedStyle(element);
      const isScrolled = /auto|scroll/.test(style.overflowY + style.overflowX) &&
        (element.scrollHeight > element.clientHeight + 1 || element.scrollWidth > element.clientWidth + 1);
      if (isScrolled) give(element, "tabindex", "0");
    });
  };

  const nameHeadings = () => {
    all("main :is(h1, h2, h3, h4, h5, h6)", (heading) => {
      give(heading, "role", "heading");
      give(heading, "aria-level", "2");
    });
    const top = document.querySelector("header .MuiTypography-root") || document.querySelector("header .MuiToolbar-root > svg:last-child");
    if (!top) return;
    give(top, "role", "heading");
    give(top, "aria-level", "1");
    if (top.tagName === "svg") {
      top.removeAttribute("aria-hidden");
      give(top, "aria-label", "Optuna Dashboard: all studies");
    }
  };

  const mend = () => {
    const [red, green, blue] = (getComputedStyle(document.body).backgroundColor.match(/\d+/g) || [255, 255, 255]).map(Number);
    document.documentElement.classList.toggle("light", red + green + blue > 382);
    nameControls();
    nameRegions();
    nameHeadings();
  };
  let waiting = 0;
  const later = () => {
    clearTimeout(waiting);
    waiting = setTimeout(mend, 100);
  };
  new MutationObserver(later).observe(document, { childList: true, subtree: true });
  addEventListener("resize", later);
  later();
})();
