"use strict";

// Without this script the tables are there, in their own order.
const collator = new Intl.Collator("en", { numeric: true });
const next = { none: "ascending", ascending: "descending", descending: "none" };

function valueOf(row, column) {
  const cell = row.cells[column];
  return cell.dataset.value === undefined ? cell.textContent : Number(cell.dataset.value);
}

function compare(a, b) {
  if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
  return typeof a === "number" ? a - b : collator.compare(a, b);
}

function sorted(rows, column, direction) {
  const keyed = rows.map((row) => ({ row, value: valueOf(row, column) }));
  const present = keyed.filter(({ value }) => value !== "");
  // What is missing comes last in either direction.
  const missing = keyed.filter(({ value }) => value === "");
  present.sort((a, b) => direction * compare(a.value, b.value));
  return [...present, ...missing].map(({ row }) => row);
}

function makeSortable(table) {
  const body = table.tBodies[0];
  const original = [...body.rows];
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    head.ariaSort = "none";
    button.addEventListener("click", () => {
      const order = next[head.ariaSort];
      for (const other of heads) other.ariaSort = "none";
      head.ariaSort = order;
      const direction = order === "descending" ? -1 : 1;
      body.append(...(order === "none" ? original : sorted(original, column, direction)));
    });
  });
}

document.querySelectorAll("table.sortable").forEach(makeSortable);
