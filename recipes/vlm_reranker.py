"""Qwen3-VL-2B as a reranker on one GPU: asked about whole lists (`recipe`), or about one candidate at a time (`pairwise`).

    pip install 'hardwon[vlm,lora]'
    hardwon run recipes/vlm_reranker.py --out runs/reranker --set reranker.steps=5     # a trial
    hardwon run recipes/vlm_reranker.py --out runs/reranker
    hardwon run recipes/vlm_reranker.py:pairwise --out runs/reranker

`pairs.jsonl` as recipes/own.py describes it; `EMBEDDER` is the model whose candidates will be reranked, since a reranker learns
most from what its embedder confuses. Which of the two to take: a list is one prompt in sight of all its candidates, but read in
several orders; pairs share the work on the query, give log-odds that mean something by themselves, and can judge when negatives
are mined.

The settings are those of UniME-V2-Reranker (LoRA of rank 128 on the language model, frozen vision, learning rate 2e-5 with a
cosine, warm-up 3 %, batch 64, 2,000 steps, five negatives, pictures of 336 pixels), for its 7B model; ours are the smaller
model, that a stranger joins each list, that every text is shown, and that gold stands in every place as often.

Memory: a step holds the graph of one chunk (`CHUNK` tokens) at a time. If a chunk does not fit, it is halved and you are told.
"""

from pathlib import Path
from typing import Any

from hardwon.losses import Listwise, Pairwise
from hardwon.mining import Cyclic, Mining
from hardwon.models import Listing, LoRA, Options
from hardwon.stages import Mine, Stage, Train
from hardwon.training import Memory, Settings

MODEL = "Qwen/Qwen3-VL-2B-Instruct"
EMBEDDER = "runs/qwen3/round2/model"  # of recipes/qwen3_vl_2b.py
DATA = "pairs.jsonl"

STEPS = 2000
NEAR, STRANGERS = 4, 1  # negatives of a list: its own, and those of other queries
CHUNK, KEEP = 16_384, 65_536  # tokens of one forward pass; tokens whose graphs are kept

# As many candidates as a list is going to hold: a label that is never trained says nothing.
LISTING = Listing(window=1 + NEAR + STRANGERS, permutations=4)
OPTIONS = Options(
    lora=LoRA(rank=128, alpha=256.0, dropout=0.0),
    freeze=("vision",),
    max_pixels=336 * 336,
    dtype="bfloat16",
)
SETTINGS = Settings(
    batch_size=64,
    negatives=NEAR,
    random_negatives=STRANGERS,
    learning_rate=2e-5,
    warmup=0.03,
    weight_decay=0.0,
    precision="bf16",
    memory=Memory(chunk_tokens=CHUNK, keep_tokens=KEEP),
)


def recipe() -> tuple[Stage, ...]:
    return (_confusions(), _reranker("listwise"))


def pairwise() -> tuple[Stage, ...]:
    return (_confusions(), _reranker("pairwise"))


def _confusions() -> Stage:
    """What the embedder takes for the gold."""
    settings = Mining(depth=16, keep=8, skip=1, selector=Cyclic(2))
    return Mine("confusions", model=EMBEDDER, data=DATA, root=_root(), settings=settings)


def _reranker(task: Any) -> Stage:
    return Train(
        "reranker",
        task=task,
        model=MODEL,
        data="confusions/examples.jsonl",
        root=_root(),
        loss=Pairwise() + Listwise(),
        steps=STEPS,
        settings=SETTINGS,
        options=OPTIONS,
        listing=LISTING if task == "listwise" else None,
        merge=True,
    )


def _root() -> str:
    return str(Path(DATA).resolve().parent)  # pictures are named relative to the pairs, also by what is mined from them
