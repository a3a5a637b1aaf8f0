"use strict";
const cards = [...document.querySelectorAll(".card")];
const words = cards.map((card) => card.textContent.toLowerCase());
const find = document.getElementById("find"), count = document.getElementById("count");
const large = document.getElementById("large"), inside = document.getElementById("inside");
const buttons = [...document.querySelectorAll("[data-show]")];
let show = "all";

function filter() {
  const wanted = find.value.toLowerCase().split(/\s+/).filter(Boolean);
  let shown = 0;
  cards.forEach((card, at) => {
    const kinds = [card.dataset.why, ...card.dataset.marks.split(" ")];
    const fits = (show === "all" || kinds.includes(show)) && wanted.every((word) => words[at].includes(word));
    card.hidden = !fits;
    shown += fits;
  });
  count.value = shown === cards.length ? "" : `${shown} of ${cards.length}`;
}

function open(card) {
  opened = card;
  const copy = card.cloneNode(true);
  copy.removeAttribute("tabindex");
  inside.replaceChildren(copy);
  if (!large.open) large.showModal();
  large.scrollTop = 0;
}

function move(step) {
  const seen = cards.filter((card) => !card.hidden);
  const at = seen.indexOf(large.open ? opened : document.activeElement.closest(".card") ?? current);
  const next = seen[Math.min(Math.max(at + step, 0), seen.length - 1)];
  if (!next) return;
  if (large.open) open(next);
  else next.focus();
}

let current = null, opened = null;
find.addEventListener("input", filter);
buttons.forEach((button) => button.addEventListener("click", () => {
  show = button.dataset.show;
  buttons.forEach((each) => each.setAttribute("aria-pressed", String(each === button)));
  filter();
}));
cards.forEach((card) => {
  card.addEventListener("focus", () => { current = card; });
  card.querySelector(".media").addEventListener("click", () => open(card));
});
document.getElementById("close").addEventListener("click", () => large.close());
large.addEventListener("close", () => { inside.replaceChildren(); opened.focus(); });
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target === find) {
    if (event.key === "Escape") { find.value = ""; filter(); find.blur(); }
    return;
  }
  if (event.key === "Escape" && large.open) { event.preventDefault(); large.close(); }
  else if (event.key === "/" && !large.open) { event.preventDefault(); find.focus(); }
  else if (event.key === "j" || event.key === "ArrowRight") move(1);
  else if (event.key === "k" || event.key === "ArrowLeft") move(-1);
  else if (event.key === "Enter" && document.activeElement.matches(".card")) { event.preventDefault(); open(document.activeElement); }
});
filter();
