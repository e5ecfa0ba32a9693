"""The whole loop on your own pairs.

Copy this file, set the constants, and run it where your data lie:

    hardwon run own.py --out runs/own
    hardwon search runs/own/index "your words"

A pair is a query and what belongs to it, one per line of `pairs.jsonl`; on either side texts, pictures or
both, or a video as its frames:

    {"query": "a red kite over the sea", "positive_image": "pictures/kite.jpg"}
    {"query": "as a boat", "query_image": "pictures/kite.jpg", "positive_image": "pictures/boat.jpg", "source": "edits"}
    {"query": "how do kites fly?", "positive": "Lift comes from ...", "negative": "A kite is a bird.", "source": "questions"}
    {"query": "it climbs", "positive_video": ["clip/1.jpg", "clip/2.jpg", "clip/3.jpg"]}

Mark kinds of pairs with `source`: only pairs of the same source meet in a batch and in mining. Some hundred pairs are enough
to try it, some thousand to learn from. Stopped, it goes on where it was; changed, it repeats only what the change reaches.
`--set round1.steps=20` changes a field of a stage for one run.
"""

from pathlib import Path

from hardwon.losses import InfoNCE, JudgeAlignment, Listwise, Pairwise
from hardwon.mining import Cyclic, Mining
from hardwon.stages import Backbone, BuildIndex, Evaluate, Mine, Stage, Train, WriteReport
from hardwon.training import Settings

# Pairs: .jsonl, .csv, .tsv or .parquet with the columns above, or a folder of pictures with captions (cat.jpg beside cat.txt,
# or captions.csv with the columns file_name and text). Picture paths are relative to the file or folder named here.
DATA = "pairs.jsonl"

# What will be searched: a folder of pictures, or JSON lines of items, {"text": ..., "image": ...}. "": build no index.
ITEMS = "pictures"

# "": the built-in small model, which two cores can train. Else any sentence-transformers model, by its folder or by its name on
# the hub ("owner/name"): it must read what your pairs hold (pictures need a multimodal one), and a large one wants a GPU.
MODEL = ""

# Held-out questions, as `hardwon.evaluation.write_benchmark` writes them. "": measure nothing, write no report.
BENCHMARK = ""
VALIDATION = ""  # other questions, on which the reranker's weight is learned; "": embedder and reranker weigh the same

# One step sees BATCH pairs, so STEPS * BATCH / pairs is the number of passes over your data: five to ten are a good start.
STEPS = 150
BATCH = 64  # more is better for the embedder, as long as most of the pairs in a batch differ in meaning

# The judge reads QUERIES * DEPTH pairs in the second mining: some hundred a second on two cores, many more on a GPU.
QUERIES = 1500
DEPTH = 10

PRECISION = "auto"  # bfloat16 where this machine is faster at it, else float32

BUILT_IN = not MODEL
START = MODEL or "base/model"
# Of the built-in model, the picture tower and the word embeddings stay as they are (which is also what makes it quick: picture
# features are computed once), and the projector between them, which starts from nothing, learns faster than the rest.
FROZEN = ("vision", "words") if BUILT_IN else ()
FAST = (("multi_modal_projector", 2e-3),) if BUILT_IN else ()
RATE = 3e-4 if BUILT_IN else 2e-5
ALIGN = 400 if BUILT_IN else 0  # steps for the projector alone; set 0 if no pair joins a picture to a text


# Symmetric: captions find pictures and pictures find captions. `hardness=9.0` (LLaVE) weighs near-misses up within a batch; on
# our small backbone it changed nothing (docs/studies.md).
CONTRAST = InfoNCE(temperature=0.05, symmetric=True)


def recipe() -> tuple[Stage, ...]:
    root = root_of_pictures()
    return (
        *([Backbone("base")] if BUILT_IN else []),
        *round1(root),
        *judged(root),
        *round2(root),
        *(measured() if BENCHMARK else ()),
        *([BuildIndex("index", model="round2/model", items=ITEMS)] if ITEMS else []),
    )


def round1(root: str) -> tuple[Stage, ...]:
    return (
        # Round 1: every pair against the others of its batch, and against a negative of its own if your data give one.
        Train(
            "round1",
            model=START,
            data=DATA,
            root=root,
            loss=CONTRAST,
            steps=STEPS,
            align=ALIGN,
            settings=Settings(
                batch_size=BATCH, negatives=1, freeze=FROZEN, rates=FAST, learning_rate=RATE, precision=PRECISION
            ),
        ),
    )


def judged(root: str) -> tuple[Stage, ...]:
    return (
        # What round 1 confuses with the right answer. The closest hit is skipped: it is the likeliest to be right after all.
        Mine(
            "confusions",
            model="round1/model",
            data=DATA,
            root=root,
            settings=Mining(depth=16, keep=8, skip=1, selector=Cyclic(2), queries=4 * QUERIES),
        ),
        # The reranker reads query and candidate together. It learns from confusions and, to know what belongs together at all,
        # from strangers; it then serves as the judge.
        Train(
            "reranker",
            task="reranker",
            model="round1/model",
            data="confusions/examples.jsonl",
            root=root,
            loss=Pairwise() + Listwise(),
            steps=STEPS,
            settings=Settings(
                batch_size=16, negatives=2, random_negatives=3, freeze=FROZEN, learning_rate=RATE, precision=PRECISION
            ),
        ),
        # Mined again, now graded: what the judge likes as well as the right answer, less `beta`, is no negative. (0.1, the
        # default, lets one planted false negative in a hundred pass, 0 one in six: docs/reliability.md. With a small judge 0
        # trained no worse: docs/studies.md.) A judge that cannot tell right answers from random ones (`min_auc`) is refused:
        # train it longer, or bring more pairs.
        Mine(
            "negatives",
            model="round1/model",
            data=DATA,
            root=root,
            judge="reranker/model",
            precision=PRECISION,
            settings=Mining(depth=DEPTH, keep=4, beta=0.0, selector=Cyclic(2), queries=QUERIES, rest=True, min_auc=0.8),
        ),
    )


def round2(root: str) -> tuple[Stage, ...]:
    return (
        # Round 2: towards the judge's grades, and against the hard negatives that it let pass.
        Train(
            "round2",
            model="round1/model",
            data="negatives/examples.jsonl",
            root=root,
            loss=0.3 * JudgeAlignment(temperature=0.05, judge_temperature=0.1) + CONTRAST,
            steps=STEPS,
            settings=Settings(batch_size=48, negatives=2, freeze=FROZEN, learning_rate=RATE / 1.5, precision=PRECISION),
        ),
    )


def measured() -> tuple[Stage, ...]:
    """The model before and after, on your questions, and a page about it."""
    models = (("start", START), ("round1", "round1/model"), ("round2", "round2/model"))
    reranked = Evaluate(
        "eval-reranked",
        model="round2/model",
        benchmark=BENCHMARK,
        label="round2 + reranker",
        rerank="reranker/model",
        depth=DEPTH,
        validation=VALIDATION,
        precision=PRECISION,
    )
    alone = (Evaluate(f"eval-{label}", model=model, benchmark=BENCHMARK, label=label) for label, model in models)
    page = WriteReport(
        "report",
        title="My pairs",
        subtitle="Before, between and after.",
        data=DATA,
        evaluations=("eval-start", "eval-round1", "eval-round2", "eval-reranked"),
        trainings=("round1", "reranker", "round2"),
        negatives="negatives",
    )
    return (*alone, reranked, page)


def root_of_pictures() -> str:
    """Where picture paths start; finds out before any work is done that a file is not there."""
    for name in filter(None, (DATA, ITEMS, BENCHMARK, VALIDATION)):
        if not Path(name).exists():
            raise ValueError(
                f"there is no {name} in {Path.cwd()}: put it there, or change the constants in {Path(__file__).name}"
            )
    data = Path(DATA).resolve()
    return str(data if data.is_dir() else data.parent)
