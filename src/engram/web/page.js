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

  function walk(element, from, key) {
    const steps = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
    const [down, right] = steps[key];
    const row = Number(from.dataset.row) + down;
    const layer = Number(from.dataset.layer) + right;
    const to = element.querySelector(`td[data-row="${row}"][data-layer="${layer}"]`);
    if (!to) return;
    from.tabIndex = -1;
    to.tabIndex = 0;
    to.focus();
  }

  window.engram = {
    tokens(element, trigger) {
      element.addEventListener("click", (event) => {
        const button = event.target.closest("button[data-token]");
        if (button) trigger("select", { token: Number(button.dataset.token) });
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
        else if (event.key.startsWith("Arrow")) walk(element, cell, event.key);
        else return;
        event.preventDefault();
      });
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
