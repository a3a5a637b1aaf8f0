"use strict";
const cards = [...document.querySelectorAll(".card")];
const cardTexts = cards.map((card) => card.textContent.toLowerCase());
const searchField = document.getElementById("find"), matchCount = document.getElementById("count");
const dialog = document.getElementById("large"), dialogBody = document.getElementById("inside");
const filterButtons = [...document.querySelectorAll("[data-show]")];
let activeFilter = "all", focusedCard = null, openedCard = null;

function applyFilter() {
  const words = searchField.value.toLowerCase().split(/\s+/).filter(Boolean);
  let shownCount = 0;
  cards.forEach((card, index) => {
    const tags = ["all", card.dataset.reason, ...card.dataset.tags.split(" ")];
    const matches = tags.includes(activeFilter) && words.every((word) => cardTexts[index].includes(word));
    card.hidden = !matches;
    shownCount += matches;
  });
  matchCount.value = shownCount === cards.length ? "" : `${shownCount} of ${cards.length}`;
}

function openCard(card) {
  openedCard = card;
  const copy = card.cloneNode(true);
  copy.removeAttribute("tabindex");
  dialogBody.replaceChildren(copy);
  if (!dialog.open) dialog.showModal();
  dialog.scrollTop = 0;
}

function moveBy(step) {
  const shownCards = cards.filter((card) => !card.hidden);
  const current = dialog.open ? openedCard : document.activeElement.closest(".card") ?? focusedCard;
  const next = shownCards[Math.min(Math.max(shownCards.indexOf(current) + step, 0), shownCards.length - 1)];
  if (!next) return;
  if (dialog.open) openCard(next);
  else next.focus();
}

searchField.addEventListener("input", applyFilter);
filterButtons.forEach((button) => button.addEventListener("click", () => {
  activeFilter = button.dataset.show;
  filterButtons.forEach((other) => other.setAttribute("aria-pressed", String(other === button)));
  applyFilter();
}));
cards.forEach((card) => {
  card.addEventListener("focus", () => { focusedCard = card; });
  card.querySelector(".media").addEventListener("click", () => openCard(card));
});
document.getElementById("close").addEventListener("click", () => dialog.close());
dialog.addEventListener("close", () => { dialogBody.replaceChildren(); openedCard.focus(); });
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target === searchField) {
    if (event.key === "Escape") { searchField.value = ""; applyFilter(); searchField.blur(); }
    return;
  }
  if (event.key === "Escape" && dialog.open) { event.preventDefault(); dialog.close(); }
  else if (event.key === "/" && !dialog.open) { event.preventDefault(); searchField.focus(); }
  else if (event.key === "j" || event.key === "ArrowRight") moveBy(1);
  else if (event.key === "k" || event.key === "ArrowLeft") moveBy(-1);
  else if (event.key === "Enter" && document.activeElement.matches(".card")) { event.preventDefault(); openCard(document.activeElement); }
});
applyFilter();
