// The ledger's menus, and links that lead into a folded row. Without this script the page is one list.
"use strict";
const form = document.querySelector(".claim-filters");
const rows = [...document.querySelectorAll(".claim-row")];

function filter() {
  const chosen = Object.fromEntries(new FormData(form));
  const fits = (row) =>
    Object.entries(chosen).every(
      ([name, value]) => !value || (name === "kind" ? row.dataset.kind.split(" ").includes(value) : row.dataset[name] === value),
    );
  let shown = 0;
  for (const row of rows) {
    row.hidden = !fits(row);
    shown += !row.hidden;
  }
  form.querySelector("output").textContent = `${shown} of ${rows.length} claims`;
}

function openTarget() {
  const row = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (row?.matches(".claim-row")) {
    row.hidden = false;
    row.open = true;
    row.scrollIntoView();
  }
}

for (const [name, value] of new URLSearchParams(location.search)) {
  const menu = form.elements[name];
  if (menu) menu.value = [...menu.options].some((option) => option.value === value) ? value : "";
}
form.hidden = false;
form.addEventListener("change", filter);
addEventListener("hashchange", openTarget);
// On paper everything is open.
addEventListener("beforeprint", () => rows.forEach((row) => (row.open = true)));
filter();
openTarget();
