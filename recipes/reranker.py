"""A reranker for what an embedder cannot tell apart.

It goes on where the demo ends, in the same workspace:

    hardwon run recipes/demo.py --out runs/demo
    hardwon run recipes/reranker.py --out runs/demo
    hardwon run recipes/reranker.py:distil --out runs/demo     # and the next round, which learns from the reranker

An embedder must say in one vector all that a picture is; a reranker looks at the picture with the question in mind. So its
training is spent where the embedder has the right answer among the first ten but not in front, and where near misses differ in
one property: skin tones, and pictures after a change. The gate leaves all other kinds of queries as they are.

`distil` goes on from there: the reranker, weighed against the embedder's cosine on held-out pairs (`calibrate`), judges what
round 2 retrieves; what it takes for right is no negative; and what it says of the others are the soft labels (`JudgeAlignment`)
that round 3 learns. In use that costs nothing: the embedder alone is asked.
"""

from hardwon.losses import InfoNCE, JudgeAlignment, Listwise, Pairwise
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


def distil() -> tuple[Stage, ...]:
    """The reranker as the judge of the next round, and its scores as soft labels."""
    return (
        *recipe(),
        Mine(
            "judged",
            model="round2/model",
            data="data/train.jsonl",
            judge="reranker-kinds/model",
            calibrate="data/val.jsonl",
            settings=Mining(depth=6, keep=4, beta=0.0, selector=Cyclic(2), queries=1600, rest=True),
        ),
        Train(
            "round3",
            model="round2/model",
            data="judged/examples.jsonl",
            root="data",
            loss=0.3 * JudgeAlignment(temperature=0.03, judge_temperature=0.1) + InfoNCE(temperature=0.03, hardness=9.0),
            steps=90,
            settings=Settings(
                batch_size=64,
                negatives=2,
                freeze=("vision", "words"),
                learning_rate=3e-4,
                rates=(("multi_modal_projector", 2e-3),),
                seed=2,
            ),
        ),
        Evaluate("eval-round3", model="round3/model", benchmark="data/mmeb-small", label="round 3"),
    )
