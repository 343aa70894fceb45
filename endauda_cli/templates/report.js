
"use strict";
document.documentElement.classList.add("js");

// A slider leads through the pictures of a card; each wipes over the one before.
for (const card of document.querySelectorAll(".card")) {
  const control = card.querySelector(".control");
  if (!control) continue;
  const slider = control.querySelector("input"), stage = card.querySelector(".layers");
  const layers = [...stage.children], buttons = [...control.querySelectorAll("button")];
  stage.classList.add("several");
  const show = () => {
    const at = Number(slider.value), whole = Math.floor(at / 100), part = at % 100;
    layers.forEach((layer, i) => {
      layer.style.clipPath = i <= whole ? "none" : `inset(0 ${i === whole + 1 ? 100 - part : 100}% 0 0)`;
    });
    stage.style.setProperty("--edge", `calc(${part}% - 1px)`);
    stage.style.setProperty("--seen", part ? "visible" : "hidden");
    buttons.forEach((button, i) => button.setAttribute("aria-pressed", String(!part && i === whole)));
    const name = (i) => buttons[i].textContent;
    slider.setAttribute("aria-valuetext", part ? `${part} % ${name(whole + 1)} over ${name(whole)}` : name(whole));
  };
  slider.addEventListener("input", show);
  for (const button of buttons) {
    button.addEventListener("click", () => { slider.value = button.value; show(); });
  }
  control.hidden = false;
  show();
}

for (const button of document.querySelectorAll(".aside")) {
  button.parentElement.hidden = false;
  button.addEventListener("click", () => {
    const beside = button.parentElement.nextElementSibling.classList.toggle("beside");
    button.setAttribute("aria-pressed", String(beside));
  });
}

// Which rows' bars are shown.
for (const table of document.querySelectorAll("[data-bars]")) {
  const chosen = [...(table.previousElementSibling?.querySelectorAll("select") ?? [])];
  const show = () => {
    const [first, second] = chosen.map((select) => select.value);
    for (const line of table.tBodies[0].rows) {
      const cell = line.cells[1], values = {};
      for (const bar of cell.children) {
        const row = bar.dataset.row, is = row === first ? "first" : row === second ? "second" : "other";
        bar.className = `bar ${is}`;
        bar.hidden = is === "other";
        values[row] = bar.dataset.value;
      }
      cell.prepend(...[...cell.children].filter((bar) => bar.dataset.row === first));
      if (line.cells.length < 3) continue;
      const known = values[first] !== "" && values[second] !== "";
      const difference = Math.round(10 * (values[first] - values[second])) / 10 + 0;
      line.cells[2].textContent = known ? (difference < 0 ? "" : "+") + difference.toFixed(1) : "n/a";
    }
  };
  chosen.forEach((select) => select.addEventListener("change", show));
}
