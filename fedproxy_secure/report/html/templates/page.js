"use strict";
// Draws the charts from the specs in the page, and makes them interactive: checkboxes fade kinds, a list chooses
// the measure, arrow keys walk over the points. Without this script the page is still complete.
(() => {
  const specs = JSON.parse(document.getElementById("specs").textContent);
  const boxes = [...document.querySelectorAll("[data-chart]")];
  const narrow = matchMedia("screen and (max-width: 46rem)");
  const views = new Map();
  const options = { actions: false, renderer: "svg", ast: true, tooltip: { theme: "page", offsetY: 14 } };

  const lit = () => {
    const ticked = document.querySelectorAll(".kinds input:checked");
    return [...new Set([...ticked].map((input) => input.dataset.kind))];
  };

  async function draw(box) {
    const id = box.dataset.chart;
    const list = document.querySelector(`select[data-for="${id}"]`);
    const spec = structuredClone(specs[id][list ? list.selectedIndex : 0]);
    if (list) document.getElementById(`${id}-says`).firstElementChild.textContent = spec.description;
    if (document.querySelector(".kinds")) spec.params[0].value = lit();
    const panels = [...box.closest("figure").parentElement.querySelectorAll(".canvas")];
    if (id.startsWith("glance") && !narrow.matches && box !== panels[0]) {
      spec.encoding.y.axis.labels = false; // the first panel names the rows
    }
    views.get(id)?.finalize();
    const drawn = await vegaEmbed(box, spec, options);
    views.set(id, drawn.view);
    box.dataset.drawn = list ? list.value : "";
    reachable(box);
  }

  // Each chart is one stop of the tab key; arrow keys go from point to point and show the point's tooltip.
  function reachable(box) {
    const points = [...box.querySelectorAll(".mark-symbol.role-mark path[aria-label]")];
    points.forEach((point, index) => {
      point.setAttribute("tabindex", index ? "-1" : "0");
      point.addEventListener("focus", () => hover(point, "pointerover", "mouseover", "mousemove", "pointermove"));
      point.addEventListener("blur", () => hover(point, "pointerout", "mouseout"));
      point.addEventListener("keydown", (event) => {
        const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
        if (!step) return;
        event.preventDefault();
        const next = points[(index + step + points.length) % points.length];
        point.setAttribute("tabindex", "-1");
        next.setAttribute("tabindex", "0");
        next.focus();
      });
    });
  }

  function hover(point, ...names) {
    const at = point.getBoundingClientRect();
    const where = { bubbles: true, clientX: at.x + at.width / 2, clientY: at.y + at.height / 2 };
    for (const name of names) {
      point.dispatchEvent(name.startsWith("pointer") ? new PointerEvent(name, where) : new MouseEvent(name, where));
    }
  }

  const drawAll = () => Promise.all(boxes.map(draw));

  document.addEventListener("change", (event) => {
    const input = event.target;
    if (input.dataset.kind !== undefined) {
      for (const other of document.querySelectorAll(".kinds input")) {
        if (other.dataset.kind === input.dataset.kind) other.checked = input.checked;
      }
      for (const view of views.values()) view.signal("lit", lit()).runAsync();
    } else if (input.dataset.for !== undefined) {
      draw(document.querySelector(`[data-chart="${input.dataset.for}"]`));
    }
  });

  // A click or tap on a number shows what it rests on.
  const about = document.getElementById("about-number");
  document.addEventListener("click", (event) => {
    const number = event.target.closest(".num");
    about.hidden = !number;
    about.textContent = number ? number.title : "";
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") about.hidden = true;
  });

  // Links into closed parts open them; a print shows all parts but the records.
  const reveal = () => {
    const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (target) target.closest("details")?.setAttribute("open", "");
  };
  addEventListener("hashchange", reveal);
  reveal();
  let opened = [];
  addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details:not([open], .record, .drawn)")];
    for (const part of opened) part.open = true;
  });
  addEventListener("afterprint", () => {
    for (const part of opened) part.open = false;
  });

  narrow.addEventListener("change", drawAll);
  drawAll().then(() => document.documentElement.setAttribute("data-charts", "drawn"));
})();
