// The map of an index: every item where t-SNE has put it, coloured by its source. Canvas, since there are thousands.
import { make, named, short, thumbnail, where } from "/page/cards.js";
import { ask, moreLike, say } from "/page/search.js";

const by = (id) => document.getElementById(id);
const KINDS = 10, PICTURES = 90, SIDE = 38, NEAR = 18, DEEPEST = 60;
const map = { points: [], found: new Map(), off: new Set(), scale: 1, x: 0, y: 0, over: -1, shown: false, asked: false, images: new Map(), items: new Map() };

export function mapShown(shown) {
  map.shown = shown;
  if (shown) draw();
}

export function markOnMap(hits) {
  map.found = new Map(hits.filter((hit) => hit.rank).map((hit) => [hit.id, hit.rank]));
  draw();
}

export async function openMap() {
  if (map.asked) return;
  map.asked = true;
  try {
    let reply = await ask("/page/map");
    while (reply.state === "computing") {
      say("map-status", `The map is being computed (${Math.round(reply.seconds)} s so far); it is kept for the next time.`);
      await new Promise((done) => setTimeout(done, 1000));
      reply = await ask("/page/map");
    }
    take(reply);
  } catch (error) {
    map.asked = false; // opening it again asks again
    say("map-status", error.message, true);
  }
}

function take(reply) {
  map.points = reply.rows.map((id, n) => ({ id, content: reply.contents[n], x: reply.x[n], y: reply.y[n], kind: reply.kinds[n], pictured: reply.pictured[n] }));
  map.names = reply.sources.map(([name]) => name);
  const total = reply.total.toLocaleString("en"), some = map.points.length.toLocaleString("en");
  map.told = map.points.length < reply.total ? `${some} of ${total} items, drawn at random.` : `All ${total} items.`;
  say("map-status", `${map.told} Choose one to see more like it${map.points.length > PICTURES ? "; zoom in to see pictures" : ""}.`);
  by("legend").replaceChildren(...(reply.sources.length > 1 ? reply.sources.map(entry) : []));
  draw();
}

// ---- sources ----

const SHAPES = ["circle", "square", "triangle", "diamond"];

function outline(kind, x, y, r) {
  switch (SHAPES[kind % SHAPES.length]) {
    case "square": return [[x - r, y - r], [x + r, y - r], [x + r, y + r], [x - r, y + r]];
    case "triangle": return [[x, y - 1.3 * r], [x + 1.2 * r, y + 0.9 * r], [x - 1.2 * r, y + 0.9 * r]];
    case "diamond": return [[x, y - 1.35 * r], [x + 1.35 * r, y], [x, y + 1.35 * r], [x - 1.35 * r, y]];
    default: return null;
  }
}

function entry([name, count], kind) {
  const place = make("li"), button = make("button", `k${kind % KINDS}`);
  const icon = document.createElementNS("http://www.w3.org/2000/svg", "svg"), path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  icon.setAttribute("viewBox", "-7 -7 14 14");
  icon.setAttribute("width", "13");
  icon.setAttribute("height", "13");
  icon.setAttribute("aria-hidden", "true");
  const corners = outline(kind, 0, 0, 4.6);
  path.setAttribute("d", corners ? `M${corners.map((corner) => corner.join(" ")).join("L")}Z` : "M-5 0a5 5 0 1 0 10 0a5 5 0 1 0-10 0Z");
  icon.append(path);
  button.type = "button";
  button.setAttribute("aria-pressed", "true");
  button.append(icon, make("span", "", name), make("small", "", count.toLocaleString("en")));
  button.addEventListener("click", () => {
    const off = !map.off.delete(kind);
    if (off) map.off.add(kind);
    button.setAttribute("aria-pressed", String(!off));
    draw();
  });
  place.append(button);
  return place;
}

// ---- drawing ----

const canvas = by("canvas"), pen = canvas.getContext("2d");
let waiting = false;

function draw() {
  if (!map.shown || waiting) return;
  waiting = true;
  requestAnimationFrame(() => {
    waiting = false;
    paint();
  });
}

function size() {
  const { width, height } = canvas.getBoundingClientRect();
  return { width, height, side: Math.min(width, height) - 48 };
}

// Where a point is on the canvas: the whole map fits when scale is 1.
function at(point, { width, height, side }) {
  const wide = Math.min(width - 48, 2.2 * side);
  return [width / 2 + (point.x - 0.5 - map.x) * wide * map.scale, height / 2 + (point.y - 0.5 - map.y) * side * map.scale];
}

function paint() {
  const box = size(), ratio = devicePixelRatio || 1;
  if (!box.width) return;
  if (canvas.width !== Math.round(box.width * ratio)) canvas.width = Math.round(box.width * ratio);
  if (canvas.height !== Math.round(box.height * ratio)) canvas.height = Math.round(box.height * ratio);
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.clearRect(0, 0, box.width, box.height);
  const style = getComputedStyle(document.documentElement), colour = (name) => style.getPropertyValue(name).trim();
  const colours = Array.from({ length: KINDS }, (_, n) => colour(`--c${n}`));
  const ink = colour("--ink"), gold = colour("--gold"), card = colour("--card");
  map.visible = [];
  for (const [n, point] of map.points.entries()) {
    const [x, y] = at(point, box);
    if (!map.off.has(point.kind) && x > -SIDE && y > -SIDE && x < box.width + SIDE && y < box.height + SIDE) map.visible.push([n, x, y]);
  }
  const pictures = map.visible.length <= PICTURES, r = Math.min(6, (map.points.length > 1500 ? 2.4 : 3.4) * Math.sqrt(map.scale));
  for (const [n, x, y] of map.visible) {
    const point = map.points[n];
    if (pictures && point.pictured && picture(point, x, y, colours[point.kind % KINDS], card)) continue;
    dot(point.kind, x, y, r, colours[point.kind % KINDS], map.found.size && !map.found.has(point.id) ? 0.4 : 0.85);
  }
  const mark = ([n, x, y], colour, more) => ring(x, y, pictures && map.points[n].pictured ? SIDE / 2 + more : r + more, colour, pictures && map.points[n].pictured);
  for (const each of map.visible) if (map.found.has(map.points[each[0]].id)) mark(each, gold, 3);
  const over = map.visible.find(([n]) => n === map.over);
  if (over) mark(over, ink, 5);
}

function dot(kind, x, y, r, colour, alpha) {
  const corners = outline(kind, x, y, r);
  pen.globalAlpha = alpha;
  pen.fillStyle = colour;
  pen.beginPath();
  if (corners) corners.forEach(([a, b], n) => (n ? pen.lineTo(a, b) : pen.moveTo(a, b)));
  else pen.arc(x, y, r, 0, 2 * Math.PI);
  pen.fill();
  pen.globalAlpha = 1;
}

function ring(x, y, r, colour, square) {
  pen.lineWidth = square ? 3 : 2;
  pen.strokeStyle = colour;
  pen.beginPath();
  if (square) pen.roundRect(x - r, y - r, 2 * r, 2 * r, 10);
  else pen.arc(x, y, r, 0, 2 * Math.PI);
  pen.stroke();
}

function picture(point, x, y, colour, card) {
  let image = map.images.get(point.id);
  if (!image) {
    map.images.set(point.id, (image = new Image()));
    image.addEventListener("load", draw);
    image.addEventListener("error", () => (image.lost = true));
    image.src = thumbnail(point);
  }
  if (!image.complete || image.lost || !image.naturalWidth) return false;
  pen.fillStyle = "#fff";
  pen.strokeStyle = colour;
  pen.lineWidth = 2;
  pen.beginPath();
  pen.roundRect(x - SIDE / 2, y - SIDE / 2, SIDE, SIDE, 8);
  pen.fill();
  pen.stroke();
  const inner = SIDE - 8, scale = inner / Math.max(image.naturalWidth, image.naturalHeight);
  const width = image.naturalWidth * scale, height = image.naturalHeight * scale;
  pen.drawImage(image, x - width / 2, y - height / 2, width, height);
  return true;
}

// ---- pointing ----

function nearest(x, y) {
  let best = -1, least = NEAR ** 2;
  for (const [n, a, b] of map.visible ?? []) {
    const far = (a - x) ** 2 + (b - y) ** 2;
    if (far < least) [best, least] = [n, far];
  }
  return best;
}

async function point(n, aloud = false) {
  if (n === map.over) return;
  map.over = n;
  canvas.classList.toggle("over", n >= 0);
  draw();
  if (n < 0) return void (by("tip").hidden = true);
  const { id, kind } = map.points[n];
  if (!map.items.has(id)) {
    const reply = await ask(`/page/items?rows=${id}`).catch(() => null);
    if (!reply) return;
    map.items.set(id, reply.items[0]);
  }
  if (n !== map.over) return; // it has moved on
  const item = map.items.get(id), words = make("p", "", short(named(item), 120)), parts = [];
  const from = belongs(item, map.names[kind]);
  if (item.images.length) {
    const image = make("img");
    image.alt = "";
    image.src = thumbnail(item);
    parts.push(image);
  }
  words.append(make("small", "", from));
  by("tip").replaceChildren(...parts, words);
  by("tip").hidden = false;
  if (aloud) by("point").textContent = `${named(item)}, ${from}`;
  const [x, y] = at(map.points[n], size()), tip = by("tip").getBoundingClientRect(), box = size();
  by("tip").style.left = `${Math.max(6, Math.min(box.width - tip.width - 6, x + 16 + tip.width > box.width ? x - tip.width - 16 : x + 16))}px`;
  by("tip").style.top = `${Math.max(6, Math.min(box.height - tip.height - 6, y - tip.height / 2))}px`;
}

// Of a text its file, since its words do not tell it; then its source, where that is not the file.
function belongs(item, source) {
  const place = item.text ? where(item) : "";
  return place.startsWith(source) ? place : [place, source].filter(Boolean).join(", ");
}

const nameOf = (n) => (map.items.has(map.points[n].id) ? named(map.items.get(map.points[n].id)) : "");

function zoom(factor, x, y) {
  const box = size(), wide = Math.min(box.width - 48, 2.2 * box.side), scale = Math.max(1, Math.min(DEEPEST, map.scale * factor));
  x ??= box.width / 2;
  y ??= box.height / 2;
  map.x += ((x - box.width / 2) / wide) * (1 / map.scale - 1 / scale);
  map.y += ((y - box.height / 2) / box.side) * (1 / map.scale - 1 / scale);
  map.scale = scale;
  within();
}

function pan(dx, dy) {
  const box = size(), wide = Math.min(box.width - 48, 2.2 * box.side);
  map.x -= dx / wide / map.scale;
  map.y -= dy / box.side / map.scale;
  within();
}

function within() {
  const room = 0.5 - 0.5 / map.scale;
  map.x = Math.max(-room, Math.min(room, map.x));
  map.y = Math.max(-room, Math.min(room, map.y));
  by("tip").hidden = true;
  map.over = -1;
  draw();
}

// The next point in the direction of an arrow: near, and not far off to the side.
function step(key) {
  const here = map.visible?.find(([n]) => n === map.over);
  if (!here) return point(nearestTo(size().width / 2, size().height / 2), true);
  const [dx, dy] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[key];
  let best = -1, least = Infinity;
  for (const [n, x, y] of map.visible) {
    const along = (x - here[1]) * dx + (y - here[2]) * dy, aside = Math.abs((x - here[1]) * dy) + Math.abs((y - here[2]) * dx);
    if (along > 0.5 && along + 2.5 * aside < least && aside <= 2 * along) [best, least] = [n, along + 2.5 * aside];
  }
  if (best >= 0) point(best, true);
}

function nearestTo(x, y) {
  const far = ([, a, b]) => (a - x) ** 2 + (b - y) ** 2;
  return (map.visible ?? []).reduce((best, each) => (best && far(best) <= far(each) ? best : each), null)?.[0] ?? -1;
}

const pointers = new Map();
let travelled = 0, spread = 0;
const placeOf = (event) => [event.clientX - canvas.getBoundingClientRect().left, event.clientY - canvas.getBoundingClientRect().top];

canvas.addEventListener("pointerdown", (event) => {
  canvas.setPointerCapture(event.pointerId);
  pointers.set(event.pointerId, placeOf(event));
  if (pointers.size === 1) travelled = 0;
  spread = 0;
});
canvas.addEventListener("pointermove", (event) => {
  const [x, y] = placeOf(event), old = pointers.get(event.pointerId);
  if (!old) return void point(nearest(x, y));
  travelled += Math.abs(x - old[0]) + Math.abs(y - old[1]);
  pointers.set(event.pointerId, [x, y]);
  if (pointers.size === 1) return void (travelled > 4 && pan(x - old[0], y - old[1]));
  const [a, b] = [...pointers.values()], now = Math.hypot(a[0] - b[0], a[1] - b[1]);
  if (spread) zoom(now / spread, (a[0] + b[0]) / 2, (a[1] + b[1]) / 2);
  spread = now;
});
for (const kind of ["pointerup", "pointercancel"])
  canvas.addEventListener(kind, (event) => {
    const alone = pointers.size === 1;
    pointers.delete(event.pointerId);
    spread = 0;
    if (kind === "pointercancel" || !alone || travelled > 4) return;
    const n = nearest(...placeOf(event));
    if (n < 0) return void point(-1);
    // A finger cannot hover: its first touch shows the item, the second asks for more like it.
    if (event.pointerType !== "mouse" && n !== map.over) return void point(n);
    moreLike(map.points[n], nameOf(n));
  });
canvas.addEventListener("pointerleave", () => pointers.size || point(-1));
canvas.addEventListener("wheel", (event) => {
  event.preventDefault();
  zoom(Math.exp(-event.deltaY * 0.0016), ...placeOf(event));
}, { passive: false });
canvas.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key.startsWith("Arrow")) step(event.key);
  else if (event.key === "+" || event.key === "=") zoom(1.5);
  else if (event.key === "-") zoom(1 / 1.5);
  else if (event.key === "0") zoom(0);
  else if (event.key === "Escape") point(-1);
  else if (event.key === "Enter" && map.over >= 0) moreLike(map.points[map.over], nameOf(map.over));
  else return;
  event.preventDefault();
});
by("in").addEventListener("click", () => zoom(1.6));
by("out").addEventListener("click", () => zoom(1 / 1.6));
by("whole").addEventListener("click", () => zoom(0));
new ResizeObserver(draw).observe(canvas);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
