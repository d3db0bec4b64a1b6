// What the page needs in the browser: clicks on tokens and cells become events for the server.
(() => {
  const CELL = "engram-cell";

  // A click on the heat map: plotly tells which cell, the table's component passes it on.
  document.addEventListener("pointerover", (event) => {
    const plot = event.target.closest?.("#engram-map .js-plotly-plot");
    if (!plot?.on) return;
    plot.removeAllListeners?.("plotly_click");
    plot.on("plotly_click", ({ points }) => {
      const detail = { row: points[0].y, layer: points[0].x };
      document.dispatchEvent(new CustomEvent(CELL, { detail }));
    });
  });

  function choose(element, row, layer, trigger) {
    for (const cell of element.querySelectorAll("td[data-layer]")) {
      const chosen = cell.dataset.row == row && cell.dataset.layer == layer;
      cell.setAttribute("aria-selected", chosen ? "true" : "false");
    }
    trigger("select", { row: Number(row), layer: Number(layer) });
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
    grid(element, trigger) {
      document.addEventListener(CELL, ({ detail }) => {
        if (element.isConnected) choose(element, detail.row, detail.layer, trigger);
      });
      element.addEventListener("click", (event) => {
        const cell = event.target.closest("td[data-layer]");
        if (cell) choose(element, cell.dataset.row, cell.dataset.layer, trigger);
      });
      element.addEventListener("keydown", (event) => {
        const cell = event.target.closest("td[data-layer]");
        if (!cell) return;
        if (event.key === "Enter" || event.key === " ") choose(element, cell.dataset.row, cell.dataset.layer, trigger);
        else if (event.key.startsWith("Arrow")) walk(element, cell, event.key);
        else return;
        event.preventDefault();
      });
    },
    download() {
      document.querySelector("#engram-file a, a#engram-file, #engram-file")?.click();
    },
  };
})();
