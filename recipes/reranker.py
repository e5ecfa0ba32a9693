"""A reranker for what an embedder cannot tell apart.

It goes on where the demo ends, in the same workspace:

    hardwon run recipes/demo.py --out runs/demo
    hardwon run recipes/reranker.py --out runs/demo

An embedder must say in one vector all that a picture is; a reranker looks at the picture with the question in mind. So its
training is spent where the embedder has the right answer among the first ten but not in front, and where near misses differ in
one property: skin tones, and pictures after a change. The gate leaves all other kinds of queries as they are.
"""

from hardwon.losses import Listwise, Pairwise
from hardwon.mining import Cyclic, Mining
from hardwon.stages import Evaluate, Mine, Stage, Train
from hardwon.training import Settings

KINDS = ("skin_tone", "composed")


def recipe() -> tuple[Stage, ...]:
    return (
        Mine(
            "near-misses",
            model="round2/model",
            data="data/train.jsonl",
            settings=Mining(depth=24, keep=12, selector=Cyclic(2)),
        ),
        Train(
            "reranker-kinds",
            task="reranker",
            layers=3,
            model="round2/model",
            data="near-misses/examples.jsonl",
            root="data",
            sources=KINDS,
            loss=Pairwise() + Listwise(),
            steps=220,
            settings=Settings(
                batch_size=16,
                negatives=4,
                freeze=("vision", "words"),
                learning_rate=3e-4,
                rates=(("multi_modal_projector", 1e-3),),
                warmup=0.05,
            ),
        ),
        Evaluate(
            "eval-gated",
            model="round2/model",
            benchmark="data/mmeb-small",
            label="round 2 + gated reranker",
            rerank="reranker-kinds/model",
            depth=10,
            validation="data/val.jsonl",
            asked=KINDS,
        ),
    )
