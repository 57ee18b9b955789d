// The keyboard's way through a page, where the themes and MathJax lead it astray.
"use strict";
(() => {
  const article = document.querySelector("article");

  // The skip link leads to the buttons above the text.
  const skip = document.querySelector("#pst-skip-link a");
  if (article && skip) {
    article.id ||= "text";
    skip.hash = article.id;
  }

  // The theme takes the focus from its buttons when they are used. Who pressed one by key gets it
  // back: at once, or when the panel that it opened is closed.
  let pressed = null;
  const giveBack = () => {
    const lost = document.activeElement.matches("body, dialog:not([open]) *");
    if (lost && !document.querySelector("dialog[open]")) pressed?.focus();
  };
  const press = (event) => {
    pressed = event.detail === 0 ? event.target.closest("button") : null; // a mouse counts its clicks
    setTimeout(giveBack);
  };
  addEventListener("click", press, true);
  for (const panel of document.querySelectorAll("dialog")) panel.addEventListener("close", giveBack);

  // A panel lies over the page: who chose a place on the page wants to see it.
  addEventListener("click", (event) => {
    const link = event.target.closest("dialog a[href]");
    if (link?.hash && link.pathname === location.pathname) link.closest("dialog").close();
  });

  // The search has one stop: Tab would lead to the browser's own bars, where Esc shuts no panel.
  const search = document.querySelector("#pst-search-dialog");
  search?.addEventListener("keydown", (event) => event.key === "Tab" && event.preventDefault());

  // Of the formulas the keyboard stops at those that scroll.
  const stopWhereItScrolls = () => {
    for (const formula of article.querySelectorAll("mjx-container[display]"))
      if (formula.scrollWidth > formula.clientWidth) formula.tabIndex = 0;
      else formula.removeAttribute("tabindex");
  };
  if (article) window.MathJax?.startup.promise.then(() => new ResizeObserver(stopWhereItScrolls).observe(article));
})();
