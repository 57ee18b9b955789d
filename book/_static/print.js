// Paper is light, has one width, and nothing on it can be opened: what a reader could unfold is
// printed (but for folded code), and what is too wide is made smaller.
(() => {
  const ROOM = 640; // pixels between the margins of print.css, a little less than A4 leaves
  const root = document.documentElement;
  let undo = [];
  addEventListener("beforeprint", () => {
    const theme = root.dataset.theme;
    root.dataset.theme = "light";
    undo = [() => (root.dataset.theme = theme)];
    for (const shut of document.querySelectorAll("article details:not(.hide, [open])")) {
      shut.open = true;
      undo.push(() => (shut.open = false));
    }
    for (const block of document.querySelectorAll("article :is(table, .math)")) {
      const pictures = [...block.querySelectorAll("svg")];
      const widths = pictures.map((picture) => picture.getBoundingClientRect().width);
      const excess = Math.max(block.scrollWidth, ...widths) / ROOM;
      if (excess <= 1) continue;
      block.style.zoom = 1 / excess;
      undo.push(() => (block.style.zoom = ""));
    }
  });
  addEventListener("afterprint", () => undo.forEach((back) => back()));
})();
