"""Tiny MMEB folders in the published forms: 36 data sets of pictures and texts, videos, and documents.

hardwon is imported inside functions: the shape checks come before it.
"""

import json
import random
from pathlib import Path

from PIL import Image, ImageDraw

QUERIES = 4
CANDIDATES = 6
WORDS = ("heron", "kettle", "violin", "glacier", "lantern", "orchid", "trolley", "walnut", "anchor", "beacon", "cactus", "drum")


def draw(path, seed):
    """A small picture that is like no other one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    picture = Image.new("RGB", (16, 16), tuple(rng.randrange(256) for _ in range(3)))
    ImageDraw.Draw(picture).rectangle((3, 3, 3 + rng.randrange(9), 12), fill=tuple(rng.randrange(256) for _ in range(3)))
    picture.save(path)


def rows(name, query, candidate, *, queries=QUERIES, candidates=CANDIDATES, form="v1"):
    """Rows of a data set as MMEB-eval has them; the first candidate belongs to the query, the others to other queries."""
    rng = random.Random(name)
    made = []
    for n in range(queries):
        others = rng.sample([m for m in range(candidates) if m != n], candidates - 1)
        told = {"qry": f"Find what {name} asks for.", "tgt": "Represent the given image."}
        shown = {"qry": (f"question {n} about a {WORDS[n]}", f"{name}/query-{n}.png")}
        sides = {"qry": [n], "tgt": [n, *others]}
        texts = [f"a {WORDS[m % len(WORDS)]} of {name}, number {m}" if "T" in candidate else "" for m in sides["tgt"]]
        paths = [f"{name}/candidate-{m}.png" if "I" in candidate else "" for m in sides["tgt"]]
        said, seen = shown["qry"] if "T" in query else ("", shown["qry"][1])
        seen = seen if "I" in query else ""
        inside, outside = ("<|image_1|>\n" if seen else ""), ("<|image_1|>\n" if "I" in candidate else "")
        instruction = told["tgt"] if "I" in candidate else ""
        if form == "v1":
            query_text = f"{inside}{told['qry']} {said}".strip() + "\n"
            target = [f"{outside}{instruction} {text}".strip() for text in texts] if instruction else texts
            made.append({"qry_text": query_text, "qry_img_path": seen, "tgt_text": target, "tgt_img_path": paths})
        else:
            columns = {"qry_inst": inside + told["qry"], "qry_text": said, "qry_img_path": seen}
            columns |= {"tgt_inst": outside + instruction, "tgt_text": texts, "tgt_img_path": paths}
            made.append(columns)
    return made


def write(path, table):
    """Write rows as Parquet or JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in table))
        return
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(table), path)


def write_set(root: Path, name, *, form="v1", pictures="images", change=lambda table: table, **sizes):
    """Write one of the 36 data sets and its pictures; `change` may spoil its rows."""
    from hardwon.data.mmeb import IMAGES

    one = next(one for one in IMAGES if one.name == name)
    table = rows(name, one.query, one.candidate, form=form, **sizes)
    for row in table:
        for path in filter(None, (row["qry_img_path"], *row["tgt_img_path"])):
            if not (root / pictures / path).exists():
                draw(root / pictures / path, path)
    table = change(table)
    base = root if form == "v1" else root / "image-tasks"
    write(base / name / "test-00000-of-00001.parquet", table)
    return table


def write_images(root: Path, *, form="v1", **sizes):
    """All 36 data sets of MMEB v1 in one of their two published forms."""
    from hardwon.data.mmeb import IMAGES

    for one in IMAGES:
        write_set(root, one.name, form=form, pictures="images" if form == "v1" else "image-tasks", **sizes)
    return root


def spoiled(row, **changes):
    """A change for `write_set`: row number `row` with other columns."""
    return lambda table: [old | changes if n == row else old for n, old in enumerate(table)]
