// What an item is called, where it lies, and the card that shows it. Texts of an index are set as text, never as markup.

const by = (id) => document.getElementById(id);
const ALOUD = 160; // characters of a text that a screen reader says of a card; the reader holds all of it
// What a place says after its file, by what the file is.
const PARTS = [[/^(.+\.pdf)#page=(\d+)$/i, "page"], [/^(.+)#frame=(\d+)$/i, "frame"], [/^(.+\.(?:txt|md))#(\d+)$/i, "passage"], [/^(.+?\.jsonl)#(.+)$/i, "row"]];

export function make(tag, className = "", text = "") {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text) made.textContent = text;
  return made;
}

// The address names what the picture shows: browsers keep it, and what has changed has another.
export const thumbnail = ({ id, content }) => `/page/thumbnails/${id}${content ? `?of=${content}` : ""}`;

// "data/guide.pdf#page=3" is page 3 of data/guide.pdf; a picture that is a file of its own is no part, whatever its name.
function parted({ place, images }) {
  if (!images[0] || !place.endsWith(images[0]))
    for (const [form, word] of PARTS) {
      const found = place.match(form);
      if (found) return { path: found[1], word, part: `${word} ${found[2]}` };
    }
  return { path: place, word: "", part: "" };
}

const told = (...parts) => parts.filter(Boolean).join(", ");

// The file, and what of it: "guide.pdf, page 3".
export function where(item) {
  const { path, part } = parted(item);
  return told(path.split("/").pop(), part);
}

// What an item is called: its words; the name of its picture; of pages and frames, whose pictures the index has made, the place.
export function named(item) {
  if (item.text) return item.text;
  const picture = item.images[0] ?? "", { word } = parted(item);
  if (!item.place.endsWith(picture) && word !== "row") return where(item);
  return picture.replace(/\.[a-z0-9]+$/i, "").replace(/[-_]+/g, " ") || where(item) || `item ${item.id}`;
}

export const short = (text, most) => (text.length > most ? `${text.slice(0, most).trimEnd()} …` : text);

const written = (score) => score.toFixed(3).replace("-", "−");

// ---- cards ----

// `before`: the rank of each hit before the reranker read the first `depth`; null: there is nothing to compare with.
export function card(hit, before, depth) {
  const place = make("li"), button = make("button", "hit");
  button.type = "button";
  button.dataset.id = hit.id;
  button.append(frame(hit));
  const label = make("span", "label"), wordless = !hit.images.length;
  label.title = told(parted(hit).path, parted(hit).part);
  label.append(make("span", "name", wordless ? where(hit) : named(hit)));
  const said = [short(named(hit), ALOUD)];
  if (hit.text) said.push(where(hit));
  if (hit.rank) {
    button.classList.add("ranked");
    button.append(make("span", "rank", String(hit.rank)));
    label.append(make("span", "score", written(hit.score)));
    said.unshift(`${hit.rank}.`);
    said.push(`score ${written(hit.score)}`);
  }
  button.append(label);
  if (before && hit.rank <= depth) {
    const up = before.get(hit.id) - hit.rank;
    button.append(make("span", "moved " + (up > 0 ? "up" : up < 0 ? "down" : "same"), up > 0 ? `▲ ${up}` : up < 0 ? `▼ ${-up}` : "="));
    said.push(up > 0 ? `up ${up}` : up < 0 ? `down ${-up}` : "where it was");
  } else if (before) place.className = "unread";
  const more = make("span", "more", "More like this");
  more.setAttribute("aria-hidden", "true");
  label.append(more);
  button.setAttribute("aria-label", `${said.join(", ")}. More like this`);
  place.append(button);
  if (hit.text) place.append(opener(hit));
  return place;
}

function opener(hit) {
  const made = make("button", "read", "Read all");
  made.type = "button";
  made.hidden = true; // until the card turns out to be too small
  made.setAttribute("aria-label", `Read all of ${where(hit)}`);
  made.setAttribute("aria-haspopup", "dialog");
  return made;
}

function frame(hit) {
  const made = make("span", "frame");
  if (!hit.images.length) {
    made.classList.add("words-only");
    made.append(make("span", "words-of", hit.text));
    return made;
  }
  const image = make("img");
  image.loading = "lazy";
  image.decoding = "async";
  image.alt = "";
  image.addEventListener("error", () => made.replaceChildren(make("span", "lost", "picture that cannot be read")), { once: true });
  image.src = thumbnail(hit);
  made.append(image);
  return made;
}

// Texts that do not fit into their cards fade, and get a button that opens them.
export function fit(grid) {
  const long = [...grid.querySelectorAll("li")].map((place) => {
    const words = place.querySelector(".words-of, .name");
    return [place, Boolean(words && place.querySelector(".read") && words.scrollHeight > words.clientHeight + 1)];
  });
  for (const [place, clipped] of long) {
    place.classList.toggle("long", clipped);
    const open = place.querySelector(".read");
    if (open) open.hidden = !clipped;
  }
}

// One card is the stop of Tab, with the button that belongs to it; arrows walk to the others.
export function rove(all, here) {
  for (const each of all) {
    each.tabIndex = each === here ? 0 : -1;
    const open = each.parentElement.querySelector(".read");
    if (open) open.tabIndex = each.tabIndex;
  }
}

// ---- the whole of a text ----

export function openReader(hit, more) {
  const { path, part } = parted(hit), reader = by("reader"), picture = by("reader-picture");
  by("reader-place").textContent = told(path, part);
  by("reader-words").textContent = hit.text;
  picture.hidden = !hit.images.length;
  if (hit.images.length) picture.src = thumbnail(hit);
  by("reader-more").onclick = () => {
    reader.close();
    more();
  };
  reader.showModal();
  by("reader-words").scrollTop = 0;
  by("reader-words").focus();
}
