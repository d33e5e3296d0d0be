// Sorts a leaderboard by the column whose header is clicked: first ascending, then descending; what is missing stays last.
for (const table of document.querySelectorAll(".leaderboard table")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0], status = table.parentElement.querySelector("[role=status]");
  const sort = (column) => {
    const head = heads[column], numeric = head.dataset.kind === "number";
    const ascending = head.getAttribute("aria-sort") !== "ascending";
    const key = (row) => row.cells[column].dataset.value;
    const compare = (a, b) => numeric ? Number(a) - Number(b) : a.localeCompare(b, "en", { numeric: true });
    const rows = [...body.rows].sort((a, b) => {
      if (key(a) === "" || key(b) === "") return (key(a) === "") - (key(b) === "");
      return (ascending ? 1 : -1) * compare(key(a), key(b));
    });
    body.append(...rows);
    for (const other of heads) other.setAttribute("aria-sort", "none");
    head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
    status.textContent = `Sorted by ${head.textContent.trim()}, ${ascending ? "ascending" : "descending"}.`;
  };
  heads.forEach((head, column) => head.addEventListener("click", () => sort(column)));
}
