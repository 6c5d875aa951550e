// The table's filter, search and order, and the opening of evidence. The page is whole without it.
"use strict";

const table = document.getElementById("videos");
const details = [...document.querySelectorAll("details.evidence")];

if (table) {
  const body = table.tBodies[0];
  const rows = [...body.rows];
  // A name is shown without what all have in common, and pasted with it.
  const whole = (row) => [row.textContent, ...[...row.cells].map((cell) => cell.dataset.value ?? "")].join(" ");
  const text = new Map(rows.map((row) => [row, whole(row).toLowerCase()]));
  const search = document.getElementById("search");
  const verdict = document.getElementById("verdict");
  const status = document.getElementById("status");
  const count = document.getElementById("count");

  const filter = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of rows) {
      const fits =
        (!verdict.value || row.dataset.verdict === verdict.value) &&
        (!status.value || row.dataset.status === status.value) &&
        words.every((word) => text.get(row).includes(word));
      row.hidden = !fits;
      shown += fits;
    }
    count.textContent = `${shown.toLocaleString("en")} of ${rows.length.toLocaleString("en")} videos shown`;
  };

  const compare = (column, sign) => (a, b) => {
    const [x, y] = [a.cells[column].dataset.value, b.cells[column].dataset.value];
    if (x === undefined || y === undefined) {
      return (x === undefined) - (y === undefined); // what is unknown stays at the end, whatever the order
    }
    const numeric = table.tHead.rows[0].cells[column].dataset.kind === "number";
    return sign * (numeric ? Number(x) - Number(y) : x < y ? -1 : x > y ? 1 : 0);
  };

  const sort = (heading) => {
    const first = heading.dataset.first;
    const other = first === "ascending" ? "descending" : "ascending";
    const order = heading.getAttribute("aria-sort") === first ? other : first;
    for (const cell of table.tHead.rows[0].cells) {
      cell.removeAttribute("aria-sort");
    }
    heading.setAttribute("aria-sort", order);
    rows.sort(compare(heading.cellIndex, order === "ascending" ? 1 : -1));
    body.append(...rows);
  };

  for (const control of [search, verdict, status]) {
    control.addEventListener("input", filter);
  }
  for (const button of table.tHead.querySelectorAll("button")) {
    button.addEventListener("click", () => sort(button.closest("th")));
  }
  document.getElementById("controls").hidden = false;
  filter(); // a browser that goes back keeps what was typed
}

const open = () => {
  const target = location.hash.length > 1 && document.getElementById(location.hash.slice(1));
  if (target && target.matches("details")) {
    target.open = true;
    target.querySelector("summary").focus({ preventScroll: true });
    target.scrollIntoView();
  }
};
window.addEventListener("hashchange", open);
for (const link of document.querySelectorAll("a[href^='#video-']")) {
  link.addEventListener("click", () => setTimeout(open)); // the same link twice changes no hash
}
open();

for (const [name, value] of [["open-all", true], ["close-all", false]]) {
  document.getElementById(name)?.addEventListener("click", () => details.forEach((one) => (one.open = value)));
}

let closed = [];
window.addEventListener("beforeprint", () => {
  closed = details.filter((one) => !one.open);
  closed.forEach((one) => (one.open = true));
});
window.addEventListener("afterprint", () => closed.forEach((one) => (one.open = false)));
