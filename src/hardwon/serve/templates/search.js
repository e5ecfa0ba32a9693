// The search page. Whatever comes from the index or from a file is set as text or as a property, never as markup.
import { card, fit, make, named, openReader, rove, short, thumbnail } from "/page/cards.js";
import { openMap, markOnMap, mapShown } from "/page/map.js";

const by = (id) => document.getElementById(id);
const AS_THEY_ARE = new Set(["image/png", "image/jpeg", "image/webp", "image/gif", "image/bmp"]);
const SIDE = 1600; // pixels, of a picture that is too large to send as it is
const STILL = matchMedia("(prefers-reduced-motion: reduce)");
const state = { about: null, picture: "", like: null, asked: 0, hits: [], before: null };

export class Failed extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

// One request. A server that is busy says when to come back, and we do, a few times.
export async function ask(path, body, signal) {
  const told = { signal, credentials: "same-origin" };
  if (body) Object.assign(told, { method: "POST", body: JSON.stringify(body), headers: { "content-type": "application/json" } });
  for (let turn = 0; ; turn++) {
    let reply;
    try {
      reply = await fetch(path, told);
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Failed("The server does not answer: is it still running?", 0);
    }
    if (reply.ok) return reply.json();
    const seconds = Number(reply.headers.get("retry-after"));
    if (reply.status === 429 && turn < 3) {
      say("status", `The server is busy; trying again in ${seconds || 1} s.`);
      await new Promise((done) => setTimeout(done, 1000 * (seconds || 1)));
      continue;
    }
    const said = await reply.json().catch(() => null);
    if (reply.status === 401) by("locked").open || by("locked").showModal();
    throw new Failed(said?.error?.message ?? `The server answered with ${reply.status}.`, reply.status);
  }
}

export function say(id, text, failed = false) {
  by(id).textContent = text;
  by(id).classList.toggle("failed", failed);
}

// ---- what is asked ----

function request(rerank, least = 1) {
  const made = { k: Math.max(least, Number(by("k").value)), rerank, exclude_self: state.like !== null };
  if (state.like !== null) return { ...made, like: state.like };
  if (by("words").value.trim()) made.text = by("words").value.trim();
  if (state.picture) made.image = state.picture;
  if (by("instruction").value.trim()) made.instruction = by("instruction").value.trim();
  return made;
}

const nothingAsked = () => state.like === null && !state.picture && !by("words").value.trim();

async function search({ remember = true } = {}) {
  state.abort?.abort();
  state.abort = new AbortController();
  const { signal } = state.abort;
  if (remember) history.pushState(null, "", address());
  if (nothingAsked()) return sample();
  const number = ++state.asked, start = performance.now(), rerank = by("rerank").checked && state.about.reranker;
  by("grid").classList.add("waiting");
  by("another").hidden = true;
  try {
    const first = await ask("/v1/search", request(false, rerank ? state.about.depth : 1), signal);
    if (number !== state.asked) return;
    const took = performance.now() - start, seen = first.hits.slice(0, Number(by("k").value));
    show(seen, null);
    say("status", told(seen, took) + (rerank ? " The reranker is reading …" : ""));
    if (rerank) {
      const second = await ask("/v1/search", request(true), signal);
      if (number !== state.asked) return;
      show(second.hits, new Map(first.hits.map((hit) => [hit.id, hit.rank])));
      say("status", moves(second, state.before));
    }
  } catch (error) {
    if (error.name === "AbortError" || number !== state.asked) return;
    by("grid").classList.add("stale"); // not what was asked for now
    say("status", error.message, true);
  } finally {
    if (number === state.asked) by("grid").classList.remove("waiting");
  }
}

function told(hits, took) {
  const among = state.about.items.toLocaleString("en");
  const what = state.like === null ? "The nearest" : "More like this:";
  return `${what} ${hits.length} of ${among}, in ${Math.round(took)} ms.`;
}

function moves({ hits, pairs }, before) {
  if (!pairs) return "The reranker read nothing: its gate or its budget leaves queries like this one as they are.";
  const read = hits.slice(0, state.about.depth);
  const moved = read.filter((hit) => before.get(hit.id) !== hit.rank);
  if (!moved.length) return `The reranker read the first ${Math.min(pairs, read.length)} and left all where they were.`;
  const far = moved.reduce((a, b) => (before.get(a.id) - a.rank >= before.get(b.id) - b.rank ? a : b));
  return `The reranker read the first ${Math.min(pairs, read.length)} and moved ${moved.length}; “${short(named(far), 60)}” rose from ${before.get(far.id)} to ${far.rank}.`;
}

async function sample() {
  const number = ++state.asked, count = Math.min(Number(by("k").value), state.about.items);
  by("grid").classList.remove("waiting"); // of a search that this takes the place of
  try {
    const { items } = await ask(`/page/sample?k=${count}&seed=${Math.floor(Math.random() * 1e6)}`);
    if (number !== state.asked) return;
    show(items, null);
    say("status", `${count} of ${state.about.items.toLocaleString("en")}, drawn at random: choose one, or ask for something.`);
    by("another").hidden = count === state.about.items;
  } catch (error) {
    if (number !== state.asked) return;
    by("grid").classList.add("stale");
    say("status", error.message, true);
  }
}

// ---- what is shown ----

function show(hits, before) {
  const grid = by("grid"), places = new Map(), old = document.activeElement?.dataset?.id;
  for (const card of grid.querySelectorAll(".hit")) places.set(card.dataset.id, card.getBoundingClientRect());
  const cards = [];
  for (const hit of hits) {
    if (before && hit.rank === state.about.depth + 1) cards.push(make("li", "cut", `The reranker has read the ${state.about.depth} above; these are where they were.`));
    cards.push(card(hit, before, state.about.depth));
  }
  grid.replaceChildren(...cards);
  grid.classList.remove("stale");
  state.hits = hits;
  state.before = before;
  const all = [...grid.querySelectorAll(".hit")];
  const kept = all.find((each) => each.dataset.id === old);
  rove(all, kept ?? all[0]);
  fit(grid);
  kept?.focus({ preventScroll: true });
  if (before && !STILL.matches) glide(all, places);
  markOnMap(hits);
}

function glide(cards, places) {
  for (const card of cards) {
    const from = places.get(card.dataset.id), to = card.getBoundingClientRect();
    if (!from || (from.left === to.left && from.top === to.top)) continue;
    card.animate([{ transform: `translate(${from.left - to.left}px, ${from.top - to.top}px)` }, { transform: "none" }], { duration: 420, easing: "cubic-bezier(.2,.8,.2,1)" });
  }
}

export function moreLike(item, name = "") {
  setPicture("");
  by("words").value = "";
  state.like = item.id;
  given(thumbnail(item), name);
  choose("found");
  search();
  scrollTo({ top: 0, behavior: STILL.matches ? "auto" : "smooth" });
}

// ---- a picture, or an item to start from ----

function given(source, name = "") {
  by("given").hidden = !source;
  by("preview").hidden = false;
  by("preview").removeAttribute("src");
  if (source) by("preview").src = source;
  by("preview").alt = state.like === null ? "The picture you search by" : "The item you search by";
  by("wording").textContent = name || "this text";
  const free = "Type words" + (state.about?.pictures ? ", or drop a picture" : "");
  by("words").placeholder = state.like !== null ? "Ask anew" : source ? "Add words" : free;
}

function setPicture(url, name = "") {
  state.picture = url;
  if (url) state.like = null;
  given(url, name);
}

const read = (blob) =>
  new Promise((done, failed) => {
    const reader = new FileReader();
    reader.onload = () => done(reader.result);
    reader.onerror = () => failed(reader.error);
    reader.readAsDataURL(blob);
  });

// As it is where the server can read it; else drawn anew, and smaller.
async function takeFile(file) {
  if (!file || !state.about?.pictures) return;
  try {
    let picture = file;
    if (!AS_THEY_ARE.has(file.type) || file.size * 1.4 > state.about.body_bytes) {
      const drawn = await createImageBitmap(file);
      const scale = Math.min(1, SIDE / Math.max(drawn.width, drawn.height));
      const canvas = make("canvas");
      canvas.width = Math.max(1, Math.round(drawn.width * scale));
      canvas.height = Math.max(1, Math.round(drawn.height * scale));
      canvas.getContext("2d").drawImage(drawn, 0, 0, canvas.width, canvas.height);
      picture = await new Promise((done) => canvas.toBlob(done, "image/png"));
    }
    setPicture(await read(picture), file.name || "a picture");
    choose("found");
    search();
  } catch {
    say("status", `${file.name || "This"} cannot be read as a picture.`, true);
  }
}

// ---- address, views, keys ----

function address() {
  const asked = new URLSearchParams();
  if (by("words").value.trim()) asked.set("words", by("words").value.trim());
  if (state.like !== null) asked.set("like", state.like);
  if (by("rerank").checked) asked.set("rerank", "1");
  if (by("instruction").value !== (state.about?.instructions[0] ?? "")) asked.set("instruction", by("instruction").value);
  return `/${asked.size ? `?${asked}` : ""}${by("map").hidden ? "" : "#map"}`;
}

function restore() {
  const asked = new URLSearchParams(location.search), like = asked.get("like");
  by("words").value = asked.get("words") ?? "";
  by("rerank").checked = asked.has("rerank");
  by("instruction").value = asked.get("instruction") ?? state.about.instructions[0] ?? "";
  state.picture = "";
  state.like = like !== null && /^[0-9a-z]{1,64}$/.test(like) ? like : null;
  given(state.like === null ? "" : thumbnail({ id: state.like }));
  choose(location.hash === "#map" ? "map" : "found");
  search({ remember: false });
}

function choose(view) {
  for (const name of ["found", "map"]) {
    by(name).hidden = name !== view;
    by(`tab-${name}`).setAttribute("aria-selected", String(name === view));
    by(`tab-${name}`).tabIndex = name === view ? 0 : -1;
  }
  if (view === "map") openMap(state);
  mapShown(view === "map");
}

function gridKey(event) {
  const all = [...by("grid").querySelectorAll(".hit")], here = all.findIndex((each) => each.parentElement.contains(document.activeElement));
  if (here < 0) return;
  const top = all[here].getBoundingClientRect(), middle = top.left + top.width / 2;
  const near = (rows) => rows.sort((a, b) => a.far - b.far || a.side - b.side)[0]?.n;
  const above = (sign) =>
    near(
      all
        .map((each, n) => ({ n, box: each.getBoundingClientRect() }))
        .map(({ n, box }) => ({ n, far: Math.round(sign * (box.top - top.top)), side: Math.abs(box.left + box.width / 2 - middle) }))
        .filter(({ far }) => far > 2),
    );
  const next = { ArrowRight: here + 1, ArrowLeft: here - 1, ArrowDown: above(1), ArrowUp: above(-1), Home: 0, End: all.length - 1 }[event.key];
  if (next === undefined && !["ArrowDown", "ArrowUp"].includes(event.key)) return;
  event.preventDefault();
  if (next === undefined && event.key === "ArrowUp") by("words").focus();
  if (!all[next]) return;
  rove(all, all[next]);
  all[next].focus();
  all[next].scrollIntoView({ block: "nearest" });
}

function listen() {
  by("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    if (by("words").value.trim()) state.like = null;
    if (state.like === null && !state.picture) given("");
    choose("found");
    search();
  });
  by("words").addEventListener("keydown", (event) => {
    if (event.key === "ArrowDown") {
      event.preventDefault();
      by("grid").querySelector('.hit[tabindex="0"]')?.focus();
    }
  });
  by("grid").addEventListener("keydown", gridKey);
  by("grid").addEventListener("click", (event) => {
    const chosen = event.target.closest("li")?.querySelector(".hit");
    const hit = chosen && state.hits.find((each) => each.id === chosen.dataset.id);
    if (!hit) return;
    if (!event.target.closest(".read")) return moreLike(hit, named(hit));
    rove([...by("grid").querySelectorAll(".hit")], chosen);
    openReader(hit, () => moreLike(hit, named(hit)));
  });
  by("reader-close").addEventListener("click", () => by("reader").close());
  by("reader").addEventListener("click", (event) => event.target === by("reader") && by("reader").close()); // beside it
  new ResizeObserver(() => fit(by("grid"))).observe(by("grid"));
  by("rerank").addEventListener("change", () => search());
  by("k").addEventListener("change", () => search({ remember: false }));
  by("another").addEventListener("click", sample);
  by("choose").addEventListener("click", () => by("file").click());
  by("file").addEventListener("change", () => {
    takeFile(by("file").files[0]);
    by("file").value = "";
  });
  // The server reads the data when this page is first asked for, which takes a while.
  by("negatives").addEventListener("click", (event) => {
    if (!event.ctrlKey && !event.metaKey && !event.shiftKey) by("negatives").classList.add("opening"); // else another tab opens it
  });
  addEventListener("pageshow", () => by("negatives").classList.remove("opening"));
  by("drop").addEventListener("click", () => {
    state.like = null;
    setPicture("");
    by("words").focus();
    search();
  });
  const tabs = [by("tab-found"), by("tab-map")];
  for (const tab of tabs) {
    tab.addEventListener("click", () => {
      choose(tab.getAttribute("aria-controls"));
      history.replaceState(null, "", address());
    });
    tab.addEventListener("keydown", (event) => {
      if (!["ArrowLeft", "ArrowRight"].includes(event.key)) return;
      const other = tabs.find((each) => each !== tab);
      other.focus();
      other.click();
    });
  }
  document.addEventListener("keydown", (event) => {
    if (event.key !== "/" || event.ctrlKey || event.metaKey || event.altKey || by("locked").open) return;
    if (event.target.matches("input, select, textarea")) return;
    event.preventDefault();
    by("words").focus();
    by("words").select();
  });
  document.addEventListener("paste", (event) => {
    const file = [...event.clipboardData.files].find((each) => each.type.startsWith("image/"));
    if (!file) return;
    event.preventDefault();
    takeFile(file);
  });
  let inside = 0;
  const files = (event) => event.dataTransfer?.types.includes("Files") && state.about?.pictures;
  addEventListener("dragenter", (event) => {
    if (files(event)) by("dropzone").hidden = !++inside;
  });
  addEventListener("dragleave", (event) => {
    if (files(event) && inside) by("dropzone").hidden = !--inside;
  });
  addEventListener("dragover", (event) => event.preventDefault());
  addEventListener("drop", (event) => {
    event.preventDefault();
    inside = 0;
    by("dropzone").hidden = true;
    takeFile(event.dataTransfer.files[0]);
  });
  addEventListener("popstate", restore);
  by("unlock").addEventListener("submit", unlock);
  by("preview").addEventListener("error", () => (by("preview").hidden = true)); // a text, or no picture: its words or its name stand there
}

async function unlock(event) {
  event.preventDefault();
  const reply = await fetch("/page/key", { headers: { authorization: `Bearer ${by("key").value}` } }).catch(() => null);
  by("wrong").textContent = reply?.ok ? "" : reply?.status === 401 ? "That is not its key." : "The server does not answer.";
  if (!reply?.ok) return;
  by("key").value = "";
  by("locked").close();
  begin();
}

// A server of a model alone has nothing to search; it says what it has.
function withoutIndex(about) {
  by("ask").hidden = true;
  document.querySelector(".tabs").hidden = true;
  say("status", "This server has no index, so there is nothing to search here.");
  const list = make("ul"), section = by("about");
  for (const [path, what] of about.endpoints) {
    const row = make("li");
    row.append(make("code", "", path), ` ${what}`);
    list.append(row);
  }
  section.replaceChildren(make("h2", "", "What it answers"), list);
  section.hidden = false;
}

async function begin() {
  try {
    const about = (state.about = await ask("/page/about"));
    by("served").textContent = [about.name, about.reranker && `reranked by ${about.reranker}`, about.items && `${about.items.toLocaleString("en")} items`].filter(Boolean).join(" · ");
    document.title = `${about.name} · hardwon search`;
    by("negatives").hidden = !about.negatives;
    if (!about.items) return withoutIndex(about);
    by("reranking").hidden = !about.reranker;
    by("choose").hidden = !about.pictures;
    by("instructions").replaceChildren(...about.instructions.map((each) => Object.assign(make("option"), { value: each })));
    restore();
  } catch (error) {
    say("status", error.message, true);
  }
}

listen();
begin();
