"""The search page as people use it, in a headless browser: by words, by pictures, by keyboard, on a phone, with a key."""

import base64
import json
import re

import pytest
import serving
import tiny
from browsing import SMALL, UNNAMED, ask, ids, told, tones

from hardwon.items import Item
from hardwon.models import Reranker
from hardwon.search import Fused, Index, open_index

KEY = "hw-planted-key-77aa"
RED = tiny.draw("red", "square")
ACTION = "window.hacked=1"
HOSTILE = (
    "<script>{}</script>", "<img src=x onerror={}>", '"><svg onload={}>', "'><iframe srcdoc='<script>parent.{}</script>'>",
    "javascript:{}", "</textarea><script>{}</script>", "</title><script>{}</script>", "<a href=javascript:{}>kite</a>",
    "{{{{constructor.constructor('{}')()}}}}", "${{{}}}", "<body onload={}>", "<details open ontoggle={}>",
    "<input autofocus onfocus={}>", "<video><source onerror={}></video>", "<base href='javascript:{}//'>",
    "<math><mtext><mglyph><style></math><img src onerror={}>", "<object data=javascript:{}>", '" onmouseover={} x="',
    "<meta http-equiv=refresh content='0;url=javascript:{}'>", "' autofocus onfocus={} '", "--><script>{}</script><!--",
    "<svg><animate onbegin={} attributeName=x dur=1s>", "]]><script>{}</script>", "\\\";{}//", "</style><script>{}</script>",
)  # fmt: skip
PAYLOADS = [
    f"{before}{text.format(ACTION)}{after}"
    for text in HOSTILE
    for before, after in (("", ""), ("a red kite ", ""), ("&lt;", "&#x3e;"), ("\u2028`", "`"))
]

SEEN = "() => [...document.querySelectorAll('.hit img')].some((each) => each.complete && each.naturalWidth)"
DRAWN = """() => {
    const canvas = document.getElementById("canvas");
    return new Set(canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data).size > 20;
}"""


def found(folder, model, query, k=24, rerank=None, **more):
    return [hit.id for hit in open_index(folder / "idx", model).search(query, k, rerank, **more)]


def kept(folder):
    """Items of the index by their ids."""
    return {row.id: row.item for row in open_index(folder / "idx").rows()}


def test_words(opened, server, folder, model):
    page = opened(server.url)
    told(page, "drawn at random")
    assert len(ids(page)) == 24
    ask(page, "red square")
    assert ids(page) == found(folder, model, Item("red square"))
    scores = page.eval_on_selector_all(".score", "all => all.map(each => Number(each.textContent))")
    assert scores == sorted(scores, reverse=True) and "words=red+square" in page.url
    page.fill("#instruction", "find it")
    page.select_option("#k", "12")
    ask(page, "red square")
    assert ids(page) == found(folder, model, Item("red square", instruction="find it"), 12)


def test_more_like_this_and_back(opened, server, folder, model):
    page = opened(f"{server.url}/?words=red+square")
    told(page, "The nearest")
    first = ids(page)
    items = kept(folder)
    picture = next(id for id in first if items[id].images)
    page.click(f'.hit[data-id="{picture}"]')
    told(page, "More like this")
    assert ids(page) == found(folder, model, items[picture], exclude_self=True) and page.is_visible("#preview")
    page.go_back()
    told(page, "The nearest")
    assert ids(page) == first and page.input_value("#words") == "red square" and page.is_hidden("#preview")
    text = next(id for id in first if items[id].text)
    page.click(f'.hit[data-id="{text}"]')  # it has no picture: its words stand in its place
    told(page, "More like this")
    page.wait_for_selector("#wording", state="visible")
    assert page.text_content("#wording") == items[text].text


def test_pictures_chosen_pasted_and_dropped(opened, server, folder, model, tmp_path):
    RED.save(tmp_path / "red.png")
    RED.save(tmp_path / "red.bmp")
    content = base64.b64encode((tmp_path / "red.png").read_bytes()).decode()
    alone = found(folder, model, Item(images=(tmp_path / "red.png",)))
    page = opened(server.url)
    told(page, "drawn at random")
    page.set_input_files("#file", tmp_path / "red.png")
    told(page, "The nearest")
    assert ids(page) == alone
    ask(page, "it")  # together with words
    assert ids(page) == found(folder, model, Item("it", (tmp_path / "red.png",)))
    page.click("#drop")
    page.wait_for_selector("#given", state="hidden")
    give = """([kind, content]) => {
        const data = new DataTransfer();
        const bytes = Uint8Array.from(atob(content), (each) => each.charCodeAt(0));
        data.items.add(new File([bytes], "red.png", { type: "image/png" }));
        const told = { bubbles: true, cancelable: true };
        if (kind === "paste") return document.dispatchEvent(new ClipboardEvent("paste", { ...told, clipboardData: data }));
        for (const name of ["dragenter", "dragover", "drop"]) {
            document.body.dispatchEvent(new DragEvent(name, { ...told, dataTransfer: data }));
            if (name !== "drop" && document.getElementById("dropzone").hidden) throw new Error("nothing says that it may drop");
        }
    }"""
    for kind in ("paste", "drop"):
        page.fill("#words", "")
        page.evaluate("document.getElementById('status').textContent = ''")
        page.evaluate(give, [kind, content])
        told(page, "The nearest")
        assert ids(page) == alone and page.is_hidden("#dropzone")
        page.click("#drop")
        told(page, "drawn at random")
    page.set_input_files("#file", {"name": "no.png", "mimeType": "image/png", "buffer": b"<html>"})
    assert "web page" in told(page, "image")
    assert page.text_content("#wording") == "no.png" and page.is_visible("#wording")  # there is nothing to be shown of it


def test_what_reranking_moves(opened, server, folder, model):
    page = opened(f"{server.url}/?words=blue+circle")
    before = (told(page, "The nearest"), ids(page))[1]
    page.check("#rerank")
    said = told(page, "The reranker read")
    after = ids(page)
    fused = Fused(Reranker.load(folder / "reranker", device="cpu"), 10)
    assert after == found(folder, model, Item("blue circle"), rerank=fused) and "rerank=1" in page.url
    chips = page.eval_on_selector_all(".moved", "all => all.map(each => each.textContent)")
    up = [before.index(id) - place for place, id in enumerate(after[:10])]
    assert chips == [f"▲ {n}" if n > 0 else f"▼ {-n}" if n < 0 else "=" for n in up]
    assert (f"moved {sum(map(bool, up))}" if any(up) else "left all") in said
    assert page.locator(".unread").count() == 14
    page.uncheck("#rerank")
    told(page, "The nearest")
    assert ids(page) == before and not page.locator(".moved").count()


def test_by_keyboard(opened, server):
    page = opened(server.url)
    told(page, "drawn at random")
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "words" and page.input_value("#words") == ""
    page.keyboard.type("red square")
    page.keyboard.press("Enter")
    told(page, "The nearest")
    page.keyboard.press("ArrowDown")
    here = "[...document.querySelectorAll('.hit')].indexOf(document.activeElement)"
    columns = page.evaluate("getComputedStyle(document.getElementById('grid')).gridTemplateColumns.split(' ').length")
    assert page.evaluate(here) == 0
    for key, place in (("ArrowRight", 1), ("ArrowDown", 1 + columns), ("ArrowLeft", columns), ("ArrowUp", 0), ("End", 23)):
        page.keyboard.press(key)
        assert page.evaluate(here) == place, key
    outline = page.evaluate(
        "getComputedStyle(document.activeElement).outlineStyle + getComputedStyle(document.activeElement).outlineWidth"
    )
    assert outline == "solid3px"  # the focus can be seen
    page.keyboard.press("Enter")
    told(page, "More like this")
    assert page.evaluate("document.querySelectorAll('[tabindex=\"0\"].hit').length") == 1  # one stop of Tab for the whole grid
    assert page.evaluate(UNNAMED) == []


def test_map(opened, server, folder, model):
    page = opened(f"{server.url}/?words=red+square#map")
    told(page, "All 40 items", "#map-status", 120)
    assert [json.loads(text) for text in page.eval_on_selector_all(
        "#legend button", "all => all.map(each => JSON.stringify(each.textContent))"
    )] == ["pictures20", "texts20"]  # fmt: skip
    page.wait_for_function(DRAWN)
    page.focus("#canvas")
    said = []
    for key in ("ArrowRight", "ArrowRight", "ArrowLeft"):
        page.keyboard.press(key)
        page.wait_for_function("old => document.getElementById('point').textContent !== old", arg=said[-1] if said else "")
        said.append(page.text_content("#point"))
    assert all(text.endswith((", pictures", ", texts")) for text in said) and page.is_visible("#tip")
    page.keyboard.press("Enter")
    told(page, "More like this")
    assert page.is_hidden("#map") and page.get_attribute("#tab-found", "aria-selected") == "true"
    name = said[-1].split(", ")[0]
    like = kept(folder)[re.search(r"like=(\w+)", page.url)[1]]
    assert (like.text or like.images[0].stem.replace("-", " ")) == name
    assert (folder / "idx" / "map.safetensors").is_file()  # kept for the next start


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone(opened, server, scheme):
    page = opened(f"{server.url}/?words=red+square&rerank=1", width=360, color_scheme=scheme, has_touch=True)
    told(page, "The reranker read")
    for tab in ("found", "map"):
        page.tap(f"#tab-{tab}")
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.tap("#tab-found")
    assert page.evaluate(SMALL) == []
    light, ink = tones(page)
    assert ink < 300 and light > 600 if scheme == "light" else ink > 500 and light < 150


@pytest.fixture(scope="module")
def hostile(folder, tmp_path_factory):
    """A server with a key whose texts, file names, instructions and mined negatives are all made to break out."""
    from hardwon.items import Candidate, Example
    from hardwon.models import Embedder

    home = tmp_path_factory.mktemp("hostile")
    home.joinpath("<img src=x onerror=window.hacked=1>").mkdir()
    items = []
    for n, text in enumerate(PAYLOADS):
        path = home / "<img src=x onerror=window.hacked=1>" / f"{text.replace('/', '')[:120]}{n}.png"
        tiny.draw("red", tiny.SHAPES[n % 4], 40 + n).save(path)
        items += [Item(text), Item(images=(path,))]
    model = Embedder.load(folder / "vlm", device="cpu")
    Index.build(model, items, progress="").save(home / "idx" / "index")
    (home / "idx" / "model.json").write_text(json.dumps({"model": "../vlm"}))
    (home / "vlm").symlink_to(folder / "vlm")
    pairs = [Example(items[n], (Candidate(items[n + 1], origin="gold"),), PAYLOADS[1]) for n in range(0, 40, 2)]
    serving.mined(home, pairs, model)
    told = ("--rerank", str(folder / "reranker"), "--negatives", str(home / "negatives"), "--instruction", PAYLOADS[1])
    log = tmp_path_factory.mktemp("hostile-log") / "log"
    with serving.running(home, log, *told, "--api-key-env", "HW_KEY", "--name", PAYLOADS[0], HW_KEY=KEY) as made:
        yield made


def test_nothing_of_the_data_is_run(opened, hostile):
    assert len(PAYLOADS) == 100
    page = opened(hostile.url)
    page.wait_for_selector("#locked[open]")  # without the key nothing of the index is told
    page.fill("#key", "wrong")
    page.press("#key", "Enter")
    told(page, "not its key", "#wrong")
    page.fill("#key", KEY)
    page.press("#key", "Enter")
    told(page, "drawn at random")
    page.check("#rerank")
    page.select_option("#k", "96")
    seen = set()
    for words in (PAYLOADS[0], PAYLOADS[40], PAYLOADS[77]):
        page.evaluate("document.getElementById('status').textContent = ''")
        page.fill("#words", words)
        page.press("#words", "Enter")
        told(page, "The reranker read")
        seen |= set(ids(page))
        for place in (0, 20, 40):
            page.locator(".hit").nth(place).hover()
    page.fill("#words", "")
    page.press("#words", "Enter")
    told(page, "96 of 200, drawn at random")
    seen |= set(ids(page))
    assert len(seen) > 96
    page.locator(".hit img").first.scroll_into_view_if_needed()
    page.wait_for_function(SEEN)  # the cookie lets thumbnails through
    page.evaluate("document.getElementById('status').textContent = ''")
    page.locator(".hit:has(img)").first.click()
    told(page, "The reranker read")  # "More like this" stands there but until it has
    page.click("#tab-map")
    told(page, "All 200 items", "#map-status", 120)
    page.focus("#canvas")
    for key in ("ArrowRight", "ArrowDown", "ArrowLeft", "ArrowUp"):
        page.keyboard.press(key)
        page.wait_for_timeout(100)
    assert page.evaluate("window.hacked") is None
    page.click("#negatives")
    page.wait_for_selector("h1")
    page.select_option("#sort", "row")
    assert "onerror" in page.text_content("body") and page.evaluate("window.hacked") is None
    page.click("text=← Search")
    told(page, "drawn at random")
    kept = page.context.cookies()
    assert [(c["httpOnly"], c["sameSite"]) for c in kept] == [(True, "Strict")] and KEY not in json.dumps(kept)
    assert KEY not in hostile.log.read_text()


def test_what_the_page_needs_no_key_for(hostile):
    with hostile.client() as client:
        right = {"authorization": f"Bearer {KEY}"}
        cookie = {"cookie": client.get("/page/key", headers=right).headers["set-cookie"].split(";")[0]}
        client.cookies.clear()
        for path in ("/", "/page/search.js", "/page/cards.js", "/page/map.js", "/page/search.css", "/page/report.css"):
            reply = client.get(path)
            policy = reply.headers["content-security-policy"]
            assert reply.status_code == 200 and "unsafe" not in policy and "default-src 'none'" in policy
            assert "onerror=window" not in reply.text
        rows = client.get("/page/sample?k=100", headers=cookie).json()["items"]
        seen = next(row["id"] for row in rows if row["images"])
        unseen = next(row["id"] for row in rows if not row["images"])
        known = ("about", "sample", "map", "key", f"items?rows={seen},{unseen}", f"thumbnails/{seen}")
        for path in (*(f"/page/{name}" for name in known), "/inspect"):
            for wrong in ("", "hardwon_page=0", f"{cookie['cookie']}0", "hardwon_page=", f"hardwon_page={KEY}"):
                assert client.get(path, headers={"cookie": wrong}).status_code == 401, (path, wrong)
            assert client.get(path, headers=cookie).status_code == 200, path
            client.cookies.clear()
        asked = {"model": PAYLOADS[0], "input": "a"}
        assert client.post("/v1/embeddings", json=asked, headers=cookie).status_code == 200
        for path in ("items?rows=999", "thumbnails/999", "thumbnails/..%2f..%2fetc", f"thumbnails/{unseen}", "x.js"):
            reply = client.get(f"/page/{path}", headers=cookie)
            assert reply.status_code == 404 and reply.json()["error"]["message"], path
        for path in ("sample?k=x", "items"):
            assert client.get(f"/page/{path}", headers=cookie).status_code == 400, path


def test_the_page_does_not_wait_for_ever(opened, server):
    """For an answer that never comes, after the words are gone; and for one that fails."""
    page = opened(server.url)
    told(page, "drawn at random")
    waiting = "() => document.getElementById('grid').classList.contains('waiting')"
    page.route("**/v1/search", lambda route: None)  # never answered
    page.fill("#words", "red square")
    page.press("#words", "Enter")
    page.wait_for_function(waiting)
    page.fill("#words", "")
    page.press("#words", "Enter")
    page.wait_for_function(f"() => !({waiting})()")
    told(page, "drawn at random")
    page.unroute("**/v1/search")
    page.route("**/v1/search", lambda route: route.abort())
    page.fill("#words", "red square")
    page.press("#words", "Enter")
    page.wait_for_function("() => document.getElementById('status').classList.contains('failed')")
    assert not page.evaluate(waiting)
    faded = "() => getComputedStyle(document.getElementById('grid')).opacity < 0.5"
    assert page.evaluate(faded)  # what stands there was not asked for
    page.unroute("**/v1/search")
    ask(page, "red square")
    assert not page.evaluate(faded)


def test_without_an_index(opened, folder, tmp_path):
    with serving.running(folder, tmp_path / "log", place="vlm") as server:
        page = opened(server.url)
        told(page, "no index")
        assert page.is_hidden("#ask") and page.is_visible("code:has-text('/v1/embeddings')")
        with server.client() as client:
            for path in ("/page/sample", "/page/map", "/page/thumbnails/0", "/inspect"):
                reply = client.get(path)
                assert reply.status_code == 404 and "start it with" in reply.json()["error"]["message"], path
