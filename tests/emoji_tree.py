"""A tiny universe of emoji: what the tables of the assets say of it."""

import itertools

from hardwon.data.emoji.catalogue import TONES, split_of

WORDS = ["".join(letters) for letters in itertools.product("bdfkl", "aeiou", "nprst", "aeiou")]  # "bana", "bane" ...
CATEGORIES = ("object-home", "object-field")
COUNTS = {"train": 8, "val": 4, "test": 5}


def rows_of_the_tree():
    """Emoji by split: plain things, workers as man, woman and person, a hand in all skin tones, and what is left out."""
    found = []

    def add(name, category, kind="basic", base="", code=None):
        number = 0x1F300 + len(found)
        slug = name.replace(": ", "-").replace(" ", "-")
        found.append(
            {
                "codepoint": code or f"U+{number:X} U+FE0F",
                "character": chr(number),
                "slug": slug,
                "cldr_name": name,
                "category_slug": "all-things",
                "subcategory_slug": category,
                "emoji_type": kind,
                "base_emoji_slug": base,
            }
        )

    for split, count in COUNTS.items():
        plain = [word for word in WORDS if split_of(word, "object-home") == split]
        for n, word in enumerate(plain[:count]):
            add(word, CATEGORIES[n % 2])
        worker, hand = plain[count : count + 2]
        for who in ("man ", "woman ", ""):
            add(who + worker, "person-role", "zwj" if who else "basic")
        add(hand, "hand-open")
        for tone in TONES:
            # Half of the tones in the real table name no base.
            add(f"{hand}: {tone} skin tone", "hand-open", "skin_tone", hand if tone == "dark" else "")
    for name in ("wren", "robin", "man gull", "gull"):
        add(name, "animal-bird" if name != "gull" else "object-home")  # of the family of what is held out
    add("flag: Utopia", "flag", "flag")
    add("couple: dark skin tone, light skin tone", "family", "skin_tone")
    add("undrawn", "object-home")
    return found


ROWS = rows_of_the_tree()
NAMES = {row["cldr_name"] for row in ROWS} - {"flag: Utopia", "couple: dark skin tone, light skin tone", "undrawn"}
