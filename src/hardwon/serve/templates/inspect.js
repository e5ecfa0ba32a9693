"use strict";
const cards = document.getElementById("cards");
const all = Array.from(cards.children);
const words = new Map(all.map((card) => [card, card.textContent.toLowerCase()]));
const by = (id) => document.getElementById(id);

function falling(elements, name) {
  return elements.sort((a, b) => b.dataset[name] - a.dataset[name] || (a.dataset.row || a.dataset.rank) - (b.dataset.row || b.dataset.rank));
}

function rising(elements, name) {
  return elements.sort((a, b) => a.dataset[name] - b.dataset[name]);
}

function sortCards() {
  const name = by("sort").value;
  cards.append(...(name === "row" ? rising(all, name) : falling(all, name)));
}

function sortCandidates() {
  const name = by("order").value;
  for (const body of cards.querySelectorAll("tbody")) {
    const rows = Array.from(body.children);
    body.append(...(name === "rank" ? rising(rows, name) : falling(rows, name)));
  }
}

function filter() {
  const shown = new Set(Array.from(document.querySelectorAll(".wanted:checked"), (box) => box.value));
  const wanted = by("find").value.trim().toLowerCase();
  let count = 0;
  for (const card of all) {
    card.hidden = !words.get(card).includes(wanted);
    count += !card.hidden;
    for (const row of card.querySelectorAll("tbody tr")) row.hidden = !shown.has(row.dataset.verdict);
  }
  by("count").textContent = count + " of " + all.length + " queries";
}

by("sort").addEventListener("change", sortCards);
by("order").addEventListener("change", sortCandidates);
by("find").addEventListener("input", filter);
for (const box of document.querySelectorAll(".wanted")) box.addEventListener("change", filter);
sortCards();
sortCandidates();
filter();
