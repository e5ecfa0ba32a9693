import io
import time

import internet
import pytest
from internet import HOST, PUBLIC
from PIL import Image
from trials import trials

from hardwon.data import read
from hardwon.errors import BadMedia, BadRows, RecipeError
from hardwon.fetch import FOLDER, AllowedHosts, Fetched, Network, fetch, is_public, urls_in

ALLOWED = AllowedHosts(("*.example.org", HOST))


def png(colour="red"):
    made = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(made, "PNG")
    return made.getvalue()


@pytest.fixture(scope="module")
def web(tmp_path_factory):
    with internet.internet(tmp_path_factory.mktemp("internet")) as made:
        yield made


@pytest.fixture(autouse=True)
def fresh(web):
    web.connected.clear(), web.trapped.clear(), web.asked.clear(), web.looked_up.clear()
    web.names.clear(), web.pages.clear()
    web.names[HOST] = list(PUBLIC)
    web.pages["/red.png"] = (200, {}, png())


def test_a_picture_of_an_allowed_host(web):
    assert fetch(f"https://{HOST}/red.png", ALLOWED, web.network) == png()
    assert web.connected == [PUBLIC[0]] and web.looked_up == [HOST]  # once: nothing can be rebound
    assert web.asked == [("/red.png", HOST)]


def test_a_query_an_anchor_and_capitals(web):
    web.pages["/a?size=2&b=%20"] = (200, {}, b"a")
    assert fetch(f"https://{HOST.upper()}/a?size=2&b=%20#part", ALLOWED, web.network) == b"a"


def test_nothing_inside_is_ever_reached(web):
    """G1: every address is refused, and no connection comes anywhere but to the public server."""
    tried = internet.attempts(web, (301, 302, 303, 307, 308) if trials(1) > 1 else (302,))
    assert len(tried) > 80
    for what, url in tried:
        with pytest.raises(BadMedia):
            pytest.fail(f"{what} {url}: {fetch(url, ALLOWED, web.network)!r}")
    assert web.trapped == [] and set(web.connected) <= set(PUBLIC)
    assert all(host.endswith("example.org") for _, host in web.asked)


def test_the_trap_would_notice(web, monkeypatch):
    monkeypatch.setattr("hardwon.fetch.is_public", lambda address: True)
    web.names["p.example.org"] = ["10.0.0.1"]
    with pytest.raises(BadMedia):
        fetch("https://p.example.org/", ALLOWED, web.network)
    assert web.trapped == ["came"] and web.connected == ["10.0.0.1"]


@pytest.mark.parametrize("address", internet.PRIVATE)
def test_addresses_that_are_not_public(address):
    assert not is_public(address)


def test_addresses_that_are():
    assert all(map(is_public, (*PUBLIC, "8.8.8.8", "1.1.1.1", "2a00:1450:4001::1")))


def test_redirects_are_followed_up_to_a_limit(web):
    for n in range(5):
        web.pages[f"/{n}"] = (302, {"Location": f"/{n - 1}" if n else "https://other.example.org/red.png"}, b"")
    web.names["other.example.org"] = [PUBLIC[0]]
    assert fetch(f"https://{HOST}/2", ALLOWED, web.network) == png()
    with pytest.raises(BadMedia, match="redirected more than 3 times"):
        fetch(f"https://{HOST}/3", ALLOWED, web.network)
    with pytest.raises(BadMedia, match="none of the allowed hosts"):
        fetch(f"https://{HOST}/2", AllowedHosts((HOST,)), web.network)


@pytest.mark.parametrize("where", ["//[", "https://[::1", "https://[x]/", "//\u00b2[", "http://", "", "\x7f", "//"])
def test_a_redirect_to_what_is_no_address(web, where):
    web.pages["/away"] = (302, {"Location": where}, b"")
    with pytest.raises(BadMedia):
        fetch(f"https://{HOST}/away", ALLOWED, web.network)


@pytest.mark.parametrize("page", [internet.dripping, internet.trickling])
def test_time_is_a_limit_of_the_whole(web, page):
    web.pages["/slow"] = page
    start = time.monotonic()
    with pytest.raises(BadMedia, match=r"longer than 0\.5 s"):
        fetch(f"https://{HOST}/slow", AllowedHosts((HOST,), timeout_s=0.5), web.network)
    assert time.monotonic() - start < 2


def test_a_name_that_is_not_answered_in_time(web):
    slow = Network(lambda host: time.sleep(3) or PUBLIC, web.network.backend, web.network.trust)
    with pytest.raises(BadMedia, match="no address in time"):
        fetch(f"https://{HOST}/", AllowedHosts((HOST,), timeout_s=0.1), slow)


def test_size_is_a_limit_stated_or_not(web):
    web.pages |= {"/endless": internet.endless, "/stated": (200, {"Content-Length": "21000000"}, b"")}
    web.pages["/fits"] = (200, {}, b"x" * 1000)
    for path in ("endless", "stated"):
        with pytest.raises(BadMedia, match="larger than the 20,000,000 bytes"):
            fetch(f"https://{HOST}/{path}", ALLOWED, web.network)
    assert len(fetch(f"https://{HOST}/fits", AllowedHosts((HOST,), max_bytes=1000), web.network)) == 1000
    with pytest.raises(BadMedia, match="larger"):
        fetch(f"https://{HOST}/fits", AllowedHosts((HOST,), max_bytes=999), web.network)


def test_what_is_no_answer(web):
    web.pages["/zip"] = (200, {"Content-Encoding": "gzip"}, b"abc")
    for path, said in (("zip", "compressed"), ("gone", "status 404")):
        with pytest.raises(BadMedia, match=said):
            fetch(f"https://{HOST}/{path}", ALLOWED, web.network)


def test_a_certificate_of_somebody_else(web):
    web.names["images.other.org"] = [PUBLIC[0]]
    with pytest.raises(BadMedia, match="cannot be fetched"):
        fetch("https://images.other.org/red.png", AllowedHosts(("images.other.org",)), web.network)
    with pytest.raises(BadMedia, match="cannot be fetched"):  # nobody has signed it
        fetch(f"https://{HOST}/red.png", ALLOWED, Network(web.network.look_up, web.network.backend))
    assert web.asked == []


@pytest.mark.parametrize(
    "wrong",
    [
        *({"hosts": ()}, {"hosts": ("https://a.org",)}, {"hosts": ("A.org",)}, {"hosts": ("10.0.0.1",)}),
        *({"hosts": ("localhost",)}, {"hosts": ("*",)}, {"hosts": ("*.org.",)}, {"hosts": ("a.org:443",)}),
        *({"hosts": ("[::1]",)}, {"hosts": ("a.org",), "max_bytes": 0}, {"hosts": ("a.org",), "timeout_s": 0.0}),
        {"hosts": ("a.org",), "max_hops": -1},
    ],
)
def test_settings_that_make_no_sense(wrong):
    with pytest.raises(RecipeError):
        AllowedHosts(**wrong)


def test_addresses_stand_in_the_columns_of_pictures_only():
    row = {"query": "https://a.org/1", "query_image": "https://a.org/2", "positive": {"text": "https://a.org/3"}}
    row["positive"]["images"] = ["https://a.org/4", "here.png"]
    row |= {
        "candidates": [{"item": {"video": ["https://a.org/5"]}}],
        "qry_image_path": "https://a.org/6",
        "source": "https://a",
    }
    assert sorted(urls_in(row)) == [f"https://a.org/{n}" for n in (2, 4, 5, 6)]


class TestReading:
    ROWS = (
        f'{{"query": "https://{HOST}/not-fetched", "positive_image": "https://{HOST}/red.png"}}\n'
        f'{{"query_image": "https://{HOST}/red.png", "positive": {{"video": ["https://{HOST}/red.png", "blue.png"]}}}}\n'
    )

    @pytest.fixture
    def data(self, tmp_path, web, monkeypatch):
        (tmp_path / "blue.png").write_bytes(png("blue"))
        (tmp_path / "data.jsonl").write_text(self.ROWS)
        monkeypatch.setattr("hardwon.fetch.Network", lambda: web.network)
        return tmp_path / "data.jsonl"

    def test_addresses_are_refused_unless_allowed(self, data, web):
        with pytest.raises(BadRows, match="is a URL"):
            read(data)
        assert web.connected == []

    def test_pictures_are_fetched_once_and_kept_by_content(self, data, web):
        found = read(data, urls=ALLOWED)
        (picture,) = found[0].gold[0].images
        assert picture.read_bytes() == png() and picture.parent == data.parent / FOLDER
        assert found[0].query.text.startswith("https://")
        assert found[1].gold[0].video == (picture, data.parent / "blue.png")
        assert web.asked == [("/red.png", HOST)]
        web.pages["/red.png"] = (200, {}, png("green"))  # what was trained on stays what it was
        assert read(data, urls=ALLOWED).fingerprint == found.fingerprint and len(web.asked) == 1
        picture.write_bytes(png("blue"))  # damage is noticed
        assert read(data, urls=ALLOWED)[0].gold[0].images[0].read_bytes() == png("green") and len(web.asked) == 2

    def test_what_cannot_be_had_is_a_bad_row_with_its_reason(self, data, web):
        data.write_text(self.ROWS + f'{{"query": "a", "positive_image": "https://{HOST}/page"}}\n')
        web.pages["/page"] = (200, {}, b"<html>")
        found = read(data, urls=ALLOWED, on_error="skip", max_bad_fraction=0.5)
        assert len(found) == 2 and "web page" in found.bad[0].reason
        with pytest.raises(BadRows, match="none of the allowed hosts"):
            read(data, urls=AllowedHosts(("other.org",)))  # also what is there already

    def test_two_readers_at_once_and_half_a_note(self, data, web):
        url = f"https://{HOST}/red.png"
        one, two = (Fetched(data.parent, ALLOWED) for _ in range(2))
        one.bring([url]), two.bring([url])
        (note,) = (data.parent / FOLDER / "addresses").iterdir()
        for damage in (b"", b"{", b"[]", b'{"sha256": "../../blue.png"}', b'{"sha256": 3}'):
            note.write_bytes(damage)
            assert Fetched(data.parent, ALLOWED).path(url) == one.path(url)
