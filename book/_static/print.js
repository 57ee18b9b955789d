// Paper is light, has one width, and nothing on it can be opened: what a reader could unfold is
// printed (but for folded code), what is too wide is made smaller, and what is long may be parted.
(() => {
  const ROOM = 640; // pixels between the margins of print.css, a little less than A4 leaves
  const LONG = 320; // a third of a sheet: a table that keeps its rows together leaves no more of it empty
  const root = document.documentElement;
  let undo = [];
  // With a number at its right a formula fills its line; MathJax writes down what it needs, in ex.
  const formulaWidth = (formula) => {
    const needed = parseFloat(formula.style.minWidth);
    if (needed) return 0.45 * needed * parseFloat(getComputedStyle(formula).fontSize);
    return formula.querySelector("svg").getBoundingClientRect().width;
  };
  // A browser tells of printing while the page is still laid out for its window, where a table is as wide
  // as the text: measure with the width and the letters of paper.
  const asOnPaper = (measure) => {
    const changed = [];
    const set = (node, name, value) => {
      changed.push([node, name, node.style.getPropertyValue(name)]);
      node.style.setProperty(name, value, "important");
    };
    set(root, "font-size", "10pt");
    for (const article of document.querySelectorAll("article.bd-article")) {
      set(article, "max-width", "none");
      set(article, "width", `${ROOM}px`);
    }
    for (const table of document.querySelectorAll("article table")) set(table, "font-size", "8pt");
    measure();
    for (const [node, name, before] of changed) node.style.setProperty(name, before);
  };
  addEventListener("beforeprint", () => {
    const theme = root.dataset.theme;
    root.dataset.theme = "light";
    undo = [() => (root.dataset.theme = theme)];
    for (const shut of document.querySelectorAll("article details:not(.hide, [open])")) {
      shut.open = true;
      undo.push(() => (shut.open = false));
    }
    const found = [];
    asOnPaper(() => {
      for (const block of document.querySelectorAll("article :is(table, .math)")) {
        const formula = block.matches("table") ? null : block.querySelector("mjx-container");
        const width = formula ? formulaWidth(formula) : block.scrollWidth;
        found.push([block, width / ROOM, !formula && block.offsetHeight > LONG]);
      }
    });
    for (const [block, excess, long] of found) {
      if (long) {
        block.style.breakInside = "auto"; // the theme's is "avoid"; its head is printed again
        undo.push(() => (block.style.breakInside = ""));
      }
      if (excess <= 1) continue;
      block.style.zoom = 1 / excess;
      undo.push(() => (block.style.zoom = ""));
    }
  });
  addEventListener("afterprint", () => undo.forEach((back) => back()));
})();
