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
        shown = {"qry": (f"question {n} about a {WORDS[n % len(WORDS)]}", f"{name}/query-{n}.png")}
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


# ---- MMEB-V2: videos


VIDEOS = 4


def frames(root: Path, group, name, count=3):
    """A folder of frames."""
    for n in range(count):
        draw(root / f"video-tasks/frames/{group}/{name}/frame_{n:04d}.jpg", f"{group}/{name}/{n}")
    return name


def _options(n):
    return [f"a {WORDS[(n + k) % len(WORDS)]}" for k in range(5)]


def video_row(name, layout, n):
    """Row n of a video task, in the columns of its published rows."""
    options, video = _options(n), f"clip{n}"
    lettered = [f"{letter}. {option}" for letter, option in zip("ABCDE", options, strict=True)]
    told = {"question": f"What is seen in {n}?"}
    return {
        "SmthSmthV2": {"video_id": n, "pos_text": options[1], "neg_text": options},
        "MVBench": told | {"video": f"{video}.mp4", "candidates": options, "answer": options[2]},
        "Video-MME": told | {"videoID": video, "options": lettered[:4], "answer": "C"},
        "NExTQA": told | {"video": n, "answer": 3} | {f"a{k}": option for k, option in enumerate(options)},
        "EgoSchema": told | {"video_idx": video, "option": lettered, "answer": "4"},
        "ActivityNetQA": {"question": f"is it {n}", "video_name": video, "answer": ("yes", "no")[n % 2]},
        "DiDeMo": {"video": f"somewhere/{video}.mp4", "caption": f"scene {n}"},
        "MSR-VTT": {"video_id": video, "video": f"{video}.mp4", "caption": f"scene {n}"},
        "MSVD": {"video_id": video, "video": f"{video}.avi", "caption": [f"scene {n}", "another one"]},
        "VATEX": {"videoID": video, "enCap": [f"scene {n}", "another one"]},
        "YouCook2": {"id": video, "video_path": f"x/{video}.mp4", "sentence": f"scene {n}"},
        "QVHighlight": {"query": f"moment {n}", "video_path": f"x/{video}.mp4"},
        "Charades-STA": {"query": f"moment {n}", "video_path": f"x/{video}.mp4"},
        "MomentSeeker": {
            "query": f"moment {n}",
            "input_frames": ("", f"asked{n}.jpg", f"x/asked{n}.mp4", "")[n],
            "positive_frames": [{"output_path": f"p/{n}_{k}.mp4"} for k in range(1 + n % 2)],
            "negative_frames": [{"output_path": f"n/{n}_{k}.mp4"} for k in range(3)],
        },
    }.get(name, {"video_id": video, "pos_text": WORDS[n % 3]})


def _video_names(name, row, n):
    """Folders of frames that a row asks for."""
    if name in ("QVHighlight", "Charades-STA"):
        return [f"clip{n}/{clip}" for clip in ("query", "positive_0", "negative_0", "negative_1")]
    if name == "MomentSeeker":
        clips = [clip["output_path"] for clip in (*row["positive_frames"], *row["negative_frames"])]
        asked = [row["input_frames"]] if row["input_frames"].endswith(".mp4") else []
        return ["video_frames/" + path.removesuffix(".mp4").replace("/", "_") for path in (*clips, *asked)]
    special = {"MVBench": f"action_count/clip{n}.mp4", "SmthSmthV2": str(n), "NExTQA": str(n), "ActivityNetQA": f"v_clip{n}"}
    return [special.get(name, f"clip{n}")]


def write_video_set(root: Path, name, change=lambda table: table):
    """Write the rows and frames of one of the 18 video tasks."""
    from hardwon.evaluation.mmeb_videos import LAYOUTS

    layout = LAYOUTS[name]
    table = [video_row(name, layout, n) for n in range(VIDEOS)]
    for n, row in enumerate(table):
        for folder in _video_names(name, row, n):
            frames(root, layout.group, folder)
        if str(row.get("input_frames", "")).endswith(".jpg"):
            draw(root / f"video-tasks/frames/{layout.group}/query_{row['input_frames']}", row["query"])
    file = {"MVBench": "action_count.jsonl", "NExTQA": "MC/test-0.parquet", "EgoSchema": "Subset/test-0.parquet"}
    write(root / "video-tasks" / layout.source / file.get(name, "data/test-0.jsonl"), change(table))


def write_videos(root: Path):
    """All 18 video tasks of MMEB-V2."""
    from hardwon.data.mmeb import VIDEOS as ROWS

    for one in ROWS:
        write_video_set(root, one.name)
    return root


# ---- MMEB-V2: documents


PAGES = 5


def write_document_set(root: Path, one, *, folder="", change=lambda tables: tables):
    """Write queries, pages and judgements of one of the 24 document tasks; pages held as bytes."""
    import io

    base = root / "visdoc-tasks" / (folder or one.source.split("/")[1])
    corpus = []
    for n in range(PAGES):
        buffer = io.BytesIO()
        Image.new("RGB", (12, 16), (n * 40, sum(map(ord, one.name)) % 256, 7)).save(buffer, "PNG")
        corpus.append({"corpus-id": n, "image": {"bytes": buffer.getvalue(), "path": f"{n}.png"}})
    tables = {
        "corpus": corpus,
        "queries": [{"query-id": n, "query": f"question {n} of {one.name}"} for n in range(3)],
        "qrels": [
            {"query-id": n, "corpus-id": (n + k) % PAGES, "score": score} for n in range(3) for k, score in enumerate((2, 1, 0))
        ],
    }
    for part, table in change(tables).items():
        write(base / part / "test-00000-of-00001.parquet", table)


def write_documents(root: Path):
    """All 24 document tasks of MMEB-V2."""
    from hardwon.data.mmeb import DOCUMENTS

    for one in DOCUMENTS:
        write_document_set(root, one)
    return root


# ---- neighbours


def _json(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def write_karpathy(root: Path, name, *, pictures=3, captions=5):
    """Karpathy's split of Flickr30K or COCO with pictures, and one picture of the training part."""
    filed = {"filepath": "val2014"} if name == "coco" else {}
    rows = [{"filename": "train.jpg", "split": "train", "sentences": [{"raw": "not asked"}]}]
    for n in range(pictures):
        said = [{"raw": f"a {WORDS[n]} seen by person {k} "} for k in range(captions)]
        rows.append({"filename": f"{n}.jpg", "split": "test", "sentences": said} | filed)
        draw(root / "images" / filed.get("filepath", "") / f"{n}.jpg", f"{name}{n}")
    _json(root / f"dataset_{name}.json", {"images": rows, "dataset": name})


def write_sharegpt4v(root: Path, count=3):
    """Long captions in conversations."""
    rows = []
    for n in range(count):
        draw(root / f"coco/{n}.jpg", f"share{n}")
        turns = [
            {"from": "human", "value": "Describe it."},
            {"from": "gpt", "value": f"A long tale of a {WORDS[n % 12]}, {n}."},
        ]
        rows.append({"id": str(n), "image": f"coco/{n}.jpg", "conversations": turns})
    _json(root / "share-captioner_coco_lcs_sam_1246k_1107.json", rows)


def write_urban1k(root: Path, base="Urban1k"):
    """Long captions in files of their own."""
    for n in range(3):
        draw(root / base / f"image/{n}.jpg", f"urban{n}")
        (root / base / "caption").mkdir(parents=True, exist_ok=True)
        (root / base / f"caption/{n}.txt").write_text(f"A street with a {WORDS[n]}.")


def write_sugarcrepe(root: Path):
    """Seven data sets of two-way choices."""
    from hardwon.evaluation.neighbours import SUGARCREPE

    for name in (name for names in SUGARCREPE.values() for name in names):
        rows = {}
        for n in range(4):
            draw(root / f"val2017/{n:012d}.jpg", f"sugar{n}")
            caption = f"a {WORDS[n]} on a table"
            rows[str(n)] = {"filename": f"{n:012d}.jpg", "caption": caption, "negative_caption": f"{caption} of {name}"}
        _json(root / f"data/{name}.json", rows)


def write_films(root: Path, file, rows):
    """Rows of captions, and frames of their videos."""
    for n, row in enumerate(rows):
        for k in range(3):
            draw(root / f"frames/{row['video_id']}/{k}.jpg", f"film{n}{k}")
    if file.endswith(".csv"):
        columns = list(rows[0])
        lines = [",".join(columns), *(",".join(str(row[column]) for column in columns) for row in rows)]
        root.mkdir(parents=True, exist_ok=True)
        (root / file).write_text("\n".join(lines))
    else:
        _json(root / file, rows)
