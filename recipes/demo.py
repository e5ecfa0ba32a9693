"""The whole loop on emoji: a small universe full of real near-misses, on two cores.

`hardwon demo` runs `recipe`, `hardwon demo --quick` runs `quick`; `hardwon run recipes/demo.py` does the same.
"""

from dataclasses import dataclass, replace

from hardwon.losses import InfoNCE, JudgeAlignment, Listwise, Pairwise
from hardwon.mining import Cyclic, Mining
from hardwon.stages import Backbone, BuildIndex, Evaluate, Mine, Query, SampleData, Stage, Train, WriteReport
from hardwon.training import Settings

FROZEN = ("vision", "words")
FAST = (("multi_modal_projector", 2e-3),)
CAPTIONS = ("text_to_image", "image_to_text")
APPLE, ASTRONAUT = "red-apple", "man-astronaut"  # the report searches with these
HARD = InfoNCE(temperature=0.03, hardness=9.0)  # LLaVE's; on small models as good as none (docs/studies.md)
BASE = Settings(batch_size=64, freeze=FROZEN, rates=FAST, learning_rate=3e-4)
# What has been learned already is changed more slowly: at the rates of round 1 one run in nine lost it again (dev/LOG.md).
GENTLE = replace(BASE, rates=(("multi_modal_projector", 5e-4),), learning_rate=2e-4)


@dataclass(frozen=True)
class Scale:
    """What differs between the demo and its reduced form."""

    collages: int
    queries: int
    align: int
    round1: int
    reranker: int
    round2: int
    unjudged: int
    judged: int
    depth: int
    min_auc: float = 0.8
    concepts: int | None = None
    calibrated: int = 600
    reranked: int = 3


def recipe() -> tuple[Stage, ...]:
    return loop(
        Scale(collages=500, queries=170, align=220, round1=55, reranker=55, round2=90, unjudged=1600, judged=800, depth=4)
    )


def quick() -> tuple[Stage, ...]:
    return loop(
        Scale(
            collages=100,
            queries=60,
            align=120,
            round1=24,
            reranker=12,
            round2=16,
            unjudged=200,
            judged=100,
            depth=3,
            min_auc=0.55,
            concepts=200,
            calibrated=150,
            reranked=2,
        )
    )


def loop(scale: Scale) -> tuple[Stage, ...]:
    return (
        *round1(scale),
        *judge(scale),
        *round2(scale),
        *evaluations(scale),
        BuildIndex("index", model="round2/model", items="data/pictures/noto"),
        report(),
    )


def round1(scale: Scale) -> tuple[Stage, ...]:
    return (
        SampleData(
            "data", collages=scale.collages, queries=scale.queries, concepts=scale.concepts, including=(APPLE, ASTRONAUT)
        ),
        Backbone("base"),
        Train(
            "round1",
            model="base/model",
            data="data/train.jsonl",
            loss=HARD,
            steps=scale.round1,
            settings=BASE,
            align=scale.align,
            align_sources=CAPTIONS,
        ),
    )


def judge(scale: Scale) -> tuple[Stage, ...]:
    return (
        # What round 1 confuses, unjudged: lists for the reranker to learn from. The closest hits are skipped, since
        # among them are the most candidates that are right after all.
        Mine(
            "confusions",
            model="round1/model",
            data="data/train.jsonl",
            settings=Mining(depth=16, keep=8, skip=1, selector=Cyclic(2), queries=scale.unjudged),
        ),
        Train(
            "reranker",
            task="reranker",
            layers=3,
            model="round1/model",
            data="confusions/examples.jsonl",
            root="data",
            loss=Pairwise() + Listwise(),
            steps=scale.reranker,
            settings=Settings(batch_size=16, negatives=2, random_negatives=3, freeze=FROZEN, learning_rate=3e-4),
        ),
    )


def round2(scale: Scale) -> tuple[Stage, ...]:
    return (
        Mine(
            "negatives",
            model="round1/model",
            data="data/train.jsonl",
            judge="reranker/model",
            calibrate="data/val.jsonl",
            calibrate_on=scale.calibrated,
            settings=Mining(
                depth=scale.depth,
                keep=4,
                beta=0.0,
                selector=Cyclic(2),
                queries=scale.judged,
                rest=True,
                min_auc=scale.min_auc,
                seed=1,
            ),
        ),
        Train(
            "round2",
            model="round1/model",
            data="negatives/examples.jsonl",
            root="data",
            loss=0.3 * JudgeAlignment(temperature=0.03, judge_temperature=0.1) + HARD,
            steps=scale.round2,
            settings=replace(GENTLE, negatives=2, seed=1),
        ),
    )


def evaluations(scale: Scale) -> tuple[Stage, ...]:
    return (
        Evaluate("eval-untrained", model="base/model", benchmark="data/mmeb-small", label="untrained"),
        Evaluate("eval-round1", model="round1/model", benchmark="data/mmeb-small", label="round 1"),
        Evaluate("eval-round2", model="round2/model", benchmark="data/mmeb-small", label="round 2"),
        Evaluate(
            "eval-reranked",
            model="round2/model",
            benchmark="data/mmeb-small",
            label="round 2 + reranker",
            rerank="reranker/model",
            depth=scale.reranked,
            validation="data/mmeb-val",
        ),
    )


def report() -> Stage:
    find = "Find a picture of this."
    apple, astronaut = (f"data/pictures/noto/{name}.png" for name in (APPLE, ASTRONAUT))
    return WriteReport(
        "report",
        title="hardwon demo",
        subtitle="From pairs to a sharp embedder, a reranker and an index, on held-out emoji concepts.",
        data="data/train.jsonl",
        evaluations=("eval-untrained", "eval-round1", "eval-round2", "eval-reranked"),
        trainings=("round1", "reranker", "round2"),
        negatives="negatives",
        index="index",
        queries=(
            Query("by words", text="an animal with wings", instruction=find),
            Query("by picture", picture=apple, instruction="Find the same thing drawn by another artist."),
            Query(
                "by picture and words", text="as a woman", picture=astronaut, instruction="Find the picture after this change."
            ),
        ),
        models=(("round 1", "round1/model"), ("round 2", "round2/model")),
        benchmark="data/mmeb-small",
        tasks=("text_to_image", "image_to_text", "composed", "grounding"),
        notes=(
            "Concepts are split by family (man, woman and person variants and all skin tones together), never by picture. "
            "Out of distribution are a style that no model was trained on (OpenMoji) and whole sub-categories held out.",
            "Round 2 has been trained longer than round 1, so their difference is not the effect of mining alone.",
        ),
    )
