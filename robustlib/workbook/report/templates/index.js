// Sorts a leaderboard by the column whose header is clicked: first ascending, then descending; what is missing stays last.
for (const table of document.querySelectorAll("section.board > .leaderboard > table")) {
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

// Shows only the runs of the chosen data set and threat; a board without any goes with its entry in the contents.
const filters = document.querySelector("form.filters");
if (filters) {
  const selects = [...filters.querySelectorAll("select")], status = filters.querySelector("[role=status]");
  const every = document.querySelectorAll("section.board > .leaderboard tbody tr");
  const choose = () => {
    for (const node of document.querySelectorAll("[data-threat]")) {
      node.hidden = selects.some((select) => select.value && node.dataset[select.name] !== select.value);
    }
    let cut = false; // some, but not all, runs of a board whose figures show them all
    for (const board of document.querySelectorAll("section.board")) {
      const entry = document.querySelector(`[data-board="${board.getAttribute("aria-labelledby")}"]`);
      board.hidden = !board.querySelector(".leaderboard tbody tr:not([hidden])");
      if (entry) entry.hidden = board.hidden;
      cut ||= !board.hidden && board.querySelector(".view") && board.querySelector(".leaderboard tr[hidden]");
    }
    const shown = [...every].filter((row) => !row.hidden).length;
    status.textContent = `${shown} of ${every.length} runs shown.` + (cut ? " Figures show every run of their preset." : "");
  };
  filters.addEventListener("change", choose);
  filters.hidden = false;
  choose(); // a browser may remember what was chosen before
}
