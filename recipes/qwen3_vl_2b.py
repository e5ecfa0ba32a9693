"""Qwen3-VL-2B on one GPU: adapters, mined negatives, a second round.

    pip install 'hardwon[vlm,lora]'
    hardwon doctor Qwen/Qwen3-VL-2B-Instruct                          # does it give the same vectors everywhere?
    hardwon run recipes/qwen3_vl_2b.py --out runs/qwen3 --set round1.steps=5 --set round2.steps=5     # a trial
    hardwon run recipes/qwen3_vl_2b.py --out runs/qwen3

`pairs.jsonl` as recipes/own.py describes it. The settings are those of UniME-V2 for its 2B model (LoRA of rank 16, batch 1,024,
learning rate 1e-4, temperature 0.02, 2,000 steps), with LLaVE's hardness in the first round; ours are the batch that mixes no
sources, symmetric training and the in-batch term beside the judge's grades.

Memory: the batch does not count, a step holds the graph of one chunk (`CHUNK` tokens) at a time, and features of the frozen
vision tower are computed once. If a chunk does not fit, it is halved and you are told; with room to spare, raise `KEEP`: graphs
that stay need not be computed twice.
"""

from dataclasses import replace
from pathlib import Path

from hardwon.losses import InfoNCE, JudgeAlignment, Listwise, Pairwise
from hardwon.mining import Cyclic, Mining
from hardwon.models import LoRA, Options
from hardwon.stages import BuildIndex, Mine, Stage, Train
from hardwon.training import Memory, Settings

MODEL = "Qwen/Qwen3-VL-2B-Instruct"
DATA = "pairs.jsonl"
ITEMS = "pictures"  # what will be searched; "": no index

BATCH, STEPS = 1024, 2000
CHUNK, KEEP = 16_384, 65_536  # tokens of one forward pass; tokens whose graphs are kept

OPTIONS = Options(
    instruction="Represent the user's input.",  # of items that bring no instruction of their own
    lora=LoRA(rank=16, alpha=64.0, dropout=0.0),
    max_pixels=672 * 672,
    dtype="bfloat16",
)
SETTINGS = Settings(
    batch_size=BATCH,
    learning_rate=1e-4,
    warmup=0.1,
    weight_decay=0.0,
    precision="bf16",
    memory=Memory(chunk_tokens=CHUNK, keep_tokens=KEEP),
)


def recipe() -> tuple[Stage, ...]:
    contrast = InfoNCE(temperature=0.02, hardness=9.0, symmetric=True)
    root = str(Path(DATA).resolve().parent)  # pictures are named relative to the pairs, also by what is mined from them
    return (
        Train(
            "round1",
            model=MODEL,
            data=DATA,
            root=root,
            loss=contrast,
            steps=STEPS,
            settings=SETTINGS,
            options=OPTIONS,
            merge=True,
        ),
        Mine(
            "confusions",
            model="round1/model",
            data=DATA,
            root=root,
            settings=Mining(depth=16, keep=8, skip=1, selector=Cyclic(2)),
        ),
        # A reranker of the same size, which then judges. (UniME-V2 asked a model of 7B that nobody had trained for it.)
        Train(
            "reranker",
            task="reranker",
            model="round1/model",
            data="confusions/examples.jsonl",
            root=root,
            loss=Pairwise() + Listwise(),
            steps=1000,
            settings=replace(SETTINGS, batch_size=64, negatives=2, random_negatives=3, learning_rate=2e-5),
        ),
        Mine(
            "negatives",
            model="round1/model",
            data=DATA,
            root=root,
            judge="reranker/model",
            precision="bf16",
            settings=Mining(depth=50, keep=8, beta=0.1, selector=Cyclic(2), min_auc=0.8),
        ),
        # 128 queries with eight negatives each come to about as many encodings as round 1's step.
        Train(
            "round2",
            model="round1/model",
            data="negatives/examples.jsonl",
            root=root,
            loss=JudgeAlignment(temperature=0.02) + 0.5 * contrast,
            steps=STEPS,
            settings=replace(SETTINGS, batch_size=128, negatives=8, learning_rate=2e-5),
            options=replace(OPTIONS, instruction=None, max_pixels=None),  # round 1 stored both with its model
            merge=True,
        ),
        *([BuildIndex("index", model="round2/model", items=ITEMS)] if ITEMS else []),
    )
