"""What the search page does when an answer does not come: its script, without a browser."""

import shutil
import subprocess

import pytest

from hardwon.serve.report import TEMPLATES

WAITING = """
const classes = new Set();
const stub = new Proxy(function () {}, {
  get: (_, name) => ({ checked: false, value: "", hidden: false, open: true, querySelectorAll: () => [], then: undefined,
    [Symbol.toPrimitive]: () => "", classList: { add: (n) => classes.add(n), remove: (n) => classes.delete(n), toggle() {} },
    textContent: "" })[name] ?? (() => stub), set: () => true, apply: () => stub });
const words = { value: "", addEventListener() {} };
const document = { getElementById: (id) => (id === "words" ? words : stub), querySelector: () => stub,
  createElement: () => stub, addEventListener() {}, activeElement: null };
const matchMedia = () => ({ matches: true }), addEventListener = () => {}, scrollTo = () => {};
const history = { pushState() {}, replaceState() {} }, location = { search: "", hash: "" };
const openMap = () => {}, markOnMap = () => {}, mapShown = () => {};
let fail = false;
const fetch = (path, told) => new Promise((done, failed) => {
  if (path === "/page/about") return failed(new Error("not yet"));
  if (path.startsWith("/page/sample")) return done({ ok: true, json: async () => ({ items: [] }) });
  if (fail) return failed(new Error("gone"));
  told.signal.addEventListener("abort", () => failed(Object.assign(new Error("stop"), { name: "AbortError" })));
});
"""
STEPS = """
state.about = { items: 3, depth: 2, instructions: [] };
const said = [], turn = () => new Promise((done) => setTimeout(done, 5));
words.value = "kite";
search();
await turn();
said.push(classes.has("waiting"));
words.value = "";
search(); // of nothing: some items are drawn instead
await turn();
said.push(classes.has("waiting"));
words.value = "kite";
fail = true;
search();
await turn();
said.push(classes.has("waiting"));
console.log(JSON.stringify(said));
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="there is no node on the PATH")
def test_the_page_does_not_wait_for_ever(tmp_path):
    lines = (TEMPLATES / "search.js").read_text().splitlines()
    script = "\n".join(line for line in lines if not line.startswith("import "))
    (tmp_path / "search.mjs").write_text(f"{WAITING}{script}{STEPS}")
    done = subprocess.run(["node", str(tmp_path / "search.mjs")], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.strip() == "[true,false,false]", done.stderr
