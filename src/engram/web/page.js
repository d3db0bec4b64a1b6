// What the page needs in the browser: clicks on tokens and cells become events for the server.
(() => {
  const CELL = "engram-cell";

  // A click on the heat map: plotly tells which cell, the area below passes it on (the table may be folded away).
  document.addEventListener("pointerover", (event) => {
    const plot = event.target.closest?.("#engram-map .js-plotly-plot");
    if (!plot?.on) return;
    plot.removeAllListeners?.("plotly_click");
    plot.on("plotly_click", ({ points }) => {
      choose(points[0].y, points[0].x);
    });
  });

  function choose(row, layer) {
    const detail = { row: Number(row), layer: Number(layer) };
    document.dispatchEvent(new CustomEvent(CELL, { detail }));
  }

  function walk(from, key) {
    const steps = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
    const [down, right] = steps[key];
    const row = Number(from.dataset.row) + down;
    const layer = Number(from.dataset.layer) + right;
    const to = from.closest("table").querySelector(`td[data-row="${row}"][data-layer="${layer}"]`);
    if (!to) return;
    from.tabIndex = -1;
    to.tabIndex = 0;
    to.focus();
  }

  window.engram = {
    // Buttons whose data-NAME="3" becomes the event {NAME: 3}.
    buttons(element, trigger) {
      element.addEventListener("click", (event) => {
        const button = event.target.closest("button");
        if (!button) return;
        const [[name, value]] = Object.entries(button.dataset);
        trigger("select", { [name]: Number(value) });
      });
    },
    cells(element, trigger) {
      document.addEventListener(CELL, ({ detail }) => trigger("select", detail));
    },
    grid(element) {
      document.addEventListener(CELL, ({ detail }) => {
        for (const cell of element.querySelectorAll("td[data-layer]")) {
          const chosen = cell.dataset.row == detail.row && cell.dataset.layer == detail.layer;
          cell.setAttribute("aria-selected", chosen ? "true" : "false");
        }
      });
      element.addEventListener("click", (event) => {
        const cell = event.target.closest("td[data-layer]");
        if (cell) choose(cell.dataset.row, cell.dataset.layer);
      });
      element.addEventListener("keydown", (event) => {
        const cell = event.target.closest("td[data-layer]");
        if (!cell) return;
        if (event.key === "Enter" || event.key === " ") choose(cell.dataset.row, cell.dataset.layer);
        else if (event.key.startsWith("Arrow")) walk(cell, event.key);
        else return;
        event.preventDefault();
      });
    },
    // After an edit its result comes into view; on a phone its long parts are folded. What came in goes out again.
    reveal(given) {
      const message = document.getElementById("engram-edit-message");
      const wrong = message?.querySelector(".engram-error");
      if (!wrong && matchMedia("(max-width: 640px)").matches) {
        for (const fold of document.querySelectorAll("#engram-result details")) fold.open = false;
      }
      const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
      message?.scrollIntoView({ behavior: calm ? "auto" : "smooth", block: wrong ? "nearest" : "start" });
      return given;
    },
    download(file) {
      if (!file?.url) return;
      const link = document.createElement("a");
      link.href = file.url;
      link.download = file.orig_name || "edit.zip";
      link.click();
    },
  };
})();
