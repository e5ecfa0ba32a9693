"""The studies themselves: which rows are trained, and against what each is compared."""

from dataclasses import replace

from hardwon.data.emoji import Size
from hardwon.errors import RecipeError, unknown
from hardwon.losses import AmplifiedInfoNCE, FalseNegatives, InfoNCE, JudgeAlignment, Listwise, Pairwise, TopKInfoNCE
from hardwon.losses.amplified import Kind
from hardwon.training import Groups
from studies.controls import Margin, colder
from studies.plan import JUDGE, TEACHER, Entry, MiningRound, Plant, Reranking, Scale, Suite, Training

T = 0.05  # of every row; `--suite sensitivity` has others
ALPHA = 9.0  # of the LLaVE paper
KINDS: tuple[tuple[str, Kind], ...] = (("ega-R2", "amplify"), ("ega-R3", "hinge"))
TARGETED = ("skin_tone", "composed")  # what recipes/reranker.py trains its reranker on
PLAIN = InfoNCE(T)
BETA = 0.1  # of a judge that knows: its grades of right answers vary by less
SMOLLM = "smollm2-135m"  # made from assets; any other backbone is a folder or a name

SMALL = Scale(Size(collages=600, queries=200), steps=240, encodings=128, judge_steps=100, reranker_steps=120)
TINY = Scale(Size(collages=20, queries=20, concepts=60), steps=4, encodings=32, judge_steps=2, reranker_steps=2, align=2)


def hardness() -> tuple[Entry, ...]:
    """In-batch objectives; each with the control that differs in nothing but its idea."""
    cold = colder(T, ALPHA)
    rows: list[Entry] = [
        Training(TEACHER, "InfoNCE", "baseline", PLAIN),
        Training("symmetric", "InfoNCE, symmetric", "baseline", InfoNCE(T, symmetric=True)),
        Training("colder", "InfoNCE at tau'", "controls", InfoNCE(cold)),
        Training("colder-sym", "InfoNCE at tau', symmetric", "controls", InfoNCE(cold, symmetric=True), control="symmetric"),
        Training("margin", "constant margin 0.1", "hardness", Margin(T)),
        Training("llave", "LLaVE one-way", "hardness", InfoNCE(T, hardness=ALPHA), control="colder"),
        Training("llave-sym", "LLaVE symmetric", "hardness", InfoNCE(T, ALPHA, symmetric=True), control="colder-sym"),
        Training("ega-R0", "EGA R0, colder", "amplified", AmplifiedInfoNCE(T, "colder", ALPHA), control="colder"),
        Training("ega-R1", "EGA R1, redistribute", "amplified", AmplifiedInfoNCE(T, "redistribute", ALPHA), control="colder"),
    ]
    for name, kind in KINDS:
        loss = AmplifiedInfoNCE(T, kind)
        rows += [
            Training(name, f"EGA {name[-2:]}, {kind}", "amplified", loss, control=f"{name}-control"),
            Training(f"{name}-control", f"colder, as {name[-2:]}", "controls", loss.control()),
        ]
    # The rule of UniME v1 is the objective's own `beta`; `FalseNegatives` says it once more, which changes nothing.
    rules = FalseNegatives(student=0.1)
    return (*rows, Training("topk", "UniME v1, filter + top 8", "selection", TopKInfoNCE(T), rules=rules))


def mined() -> tuple[Entry, ...]:
    """Negatives of one's own: half the queries, the same encodings per step."""
    half = SMALL.encodings // 4
    aligned = JudgeAlignment(T, judge_temperature=0.1)

    def row(name: str, title: str, source: str, loss: object, **more: object) -> Training:
        return Training(name, title, "mining", loss, mined=source, queries=half, negatives=2, **more)  # type: ignore[arg-type]

    return (
        JUDGE,
        MiningRound("mine-nearest"),
        MiningRound("mine-judged", "reranker"),
        MiningRound("mine-oracle", "oracle", beta=BETA),
        Training("half-batch", "InfoNCE, half the queries", "controls", PLAIN, queries=half),
        row("mined", "mined, no judge", "mine-nearest", PLAIN),
        row("filtered", "mined, judge filters", "mine-judged", PLAIN, control="mined"),
        row("aligned-alone", "judge + alignment alone", "mine-judged", aligned, only_mined=True, control="filtered"),
        row("aligned", "judge + alignment + in-batch", "mine-judged", 0.3 * aligned + PLAIN, control="filtered"),
        row("oracle", "mined, perfect judge filters", "mine-oracle", PLAIN, control="filtered"),
        Training("groups", "batches of near misses", "mining", PLAIN, groups=Groups()),
    )


def recipes() -> tuple[Entry, ...]:
    """What might win: ideas put together, at the same encodings and steps."""
    both = InfoNCE(T, symmetric=True)
    best = Training("best", "symmetric, groups, averaged", "recipes", both, average=0.3, groups=Groups(), control="averaged")
    changes = Training(
        "changes",
        "symmetric, groups for changed pictures alone",
        "recipes",
        both,
        groups=Groups(size=32, sources=("composed",)),
        by_itself=True,
        control="symmetric",
    )
    (aligned,) = (entry for entry in mined() if isinstance(entry, Training) and entry.name == "aligned")
    return (
        # What mining, grouping and a teacher cost, spent on steps.
        Training("longer", "InfoNCE, three times the steps", "recipes", PLAIN, longer=3.0),
        # The alignment takes about as long as 0.3 of the steps: equal wall-clock with whoever begins with it.
        Training("scratch", "InfoNCE, not aligned, 1.3 x the steps", "recipes", PLAIN, unaligned=True, longer=1.3),
        Training("averaged", "symmetric, weights averaged", "recipes", both, average=0.3, control="symmetric"),
        best,
        changes,
        replace(
            changes,
            name="changes-small",
            title="symmetric, groups for changed pictures, 32 queries, 1.5 x the steps",
            queries=32,
            longer=1.5,
        ),
        replace(
            changes,
            name="changes-48",
            title="symmetric, groups for changed pictures, 48 queries, 1.15 x the steps",
            groups=Groups(size=24, sources=("composed",)),
            queries=48,
            longer=1.15,
        ),
        # Whether ideas still matter when nobody stops early.
        replace(
            best, name="best-longer", title="symmetric, groups, averaged, three times the steps", longer=3.0, control="longer"
        ),
        replace(changes, name="changes-longer", title=f"{changes.title}, three times the steps", longer=3.0, control="longer"),
        replace(
            aligned,
            name="aligned-longer",
            title=f"{aligned.title}, three times the steps",
            family="recipes",
            longer=3.0,
            control="longer",
        ),
    )


def rerankers() -> tuple[Entry, ...]:
    """Behind the baseline and behind recipes; the control has as many encodings more, spent on steps of the embedder."""
    joint = Pairwise() + Listwise()
    targeted = Reranking("rerank-targeted", "reranker, joint, two kinds of queries", TEACHER, joint, TARGETED, control="longer")
    return (
        Reranking("rerank-pairwise", "reranker, pairwise", TEACHER, Pairwise(), control="longer"),
        Reranking("rerank-listwise", "reranker, listwise", TEACHER, Listwise(), control="longer"),
        Reranking("rerank-joint", "reranker, joint", TEACHER, joint, control="longer"),
        targeted,
        Reranking("best-reranked", "symmetric, groups, averaged + joint reranker", "best", joint, control="best-longer"),
        replace(
            targeted,
            name="changes-reranked",
            title="symmetric, groups for changed pictures alone + the same reranker",
            base="changes",
            control="changes-longer",
        ),
        replace(
            targeted,
            name="longest-reranked",
            title="symmetric, groups for changed pictures alone, three times the steps + the same reranker",
            base="changes-longer",
            control="changes-longer",
        ),
    )


def small() -> Suite:
    """The table of the docs."""
    return Suite("small", SMALL, (*hardness(), *mined(), *recipes(), *rerankers()), "all objectives on one small backbone")


def confirm() -> Suite:
    """What the small table recommends, on concepts that nothing has been chosen on."""
    scale = replace(SMALL, size=replace(SMALL.size, division="fourth"))
    names = (
        "infonce",
        "symmetric",
        "changes",
        "changes-48",
        "longer",
        "changes-longer",
        "rerank-targeted",
        "changes-reranked",
        "longest-reranked",
    )
    entries = tuple(entry for entry in small().entries if entry.name in names)
    return Suite("confirm", scale, entries, "the recommended rows on other held-out concepts")


def tiny() -> Suite:
    """The rows of all suites at a size that says nothing: whether everything runs."""
    everything = {entry.name: entry for entry in (*small().entries, *sensitivity().entries)}.values()
    entries = tuple(replace(e, queries=8) if isinstance(e, Training) and e.queries else e for e in everything)
    return Suite("tiny", TINY, entries, "whether everything runs")


def sensitivity() -> Suite:
    """One thing at a time."""
    rows: list[Entry] = [Training(TEACHER, "InfoNCE", "baseline", PLAIN)]
    for alpha in (1.0, 3.0, 9.0, 20.0):
        rows.append(Training(f"llave-{alpha:g}", f"{alpha:g}", "LLaVE: alpha", InfoNCE(T, hardness=alpha)))
    for alpha in (1.0, 4.0, 16.0):
        rows.append(Training(f"amplify-{alpha:g}", f"{alpha:g}", "EGA R2: alpha", AmplifiedInfoNCE(T, alpha=alpha)))
    for k in (2, 8, 32):
        rows.append(Training(f"topk-{k}", f"{k}", "top-k: k", TopKInfoNCE(T, k=k)))
    for beta in (0.0, 0.1, 0.3):
        rows.append(Training(f"topk-beta-{beta:g}", f"{beta:g}", "top-k: beta", TopKInfoNCE(T, beta=beta)))
    for tau in (0.02, 0.03, 0.08, 0.12):
        rows.append(Training(f"tau-{tau:g}", f"{tau:g}", "InfoNCE: tau", InfoNCE(tau)))
    for queries in (16, 32, 128):
        rows.append(Training(f"batch-{queries}", f"{queries}", "InfoNCE: queries per step", PLAIN, queries=queries))
    return Suite("sensitivity", SMALL, (*rows, *judges(), *damage()), "one thing at a time")


def judges() -> tuple[Entry, ...]:
    """A judge that is wrong more and more often, and how far its word must be from the positive's to count."""
    rows: list[Entry] = []
    half = SMALL.encodings // 4
    for error in (0.0, 0.1, 0.25, 0.5):
        name, family = f"error-{error:g}", "judge: share of wrong answers"
        rows.append(MiningRound(f"mine-{name}", "oracle", error, BETA))
        rows.append(Training(name, f"{error:g}", family, PLAIN, mined=f"mine-{name}", queries=half, negatives=2))
    rows.append(JUDGE)
    for beta in (0.0, 0.05, 0.1):
        name, family = f"beta-{beta:g}", "judge (small reranker): beta"
        rows.append(MiningRound(f"mine-{name}", "reranker", beta=beta))
        rows.append(Training(name, f"{beta:g}", family, PLAIN, mined=f"mine-{name}", queries=half, negatives=2))
    return tuple(rows)


def damage() -> tuple[Entry, ...]:
    """Planted copies and wrong labels, and what rescues from them."""
    rows: list[Entry] = []
    half = SMALL.encodings // 4
    llave = InfoNCE(T, hardness=ALPHA)
    losses = {"InfoNCE": PLAIN, "LLaVE": llave, "EGA R2": AmplifiedInfoNCE(T), "top 8": TopKInfoNCE(T)}
    for copies in (0.0, 0.25, 0.5):
        plant, name = Plant(copies=copies), f"copies-{copies:g}"
        family = f"copies {copies:g}"
        rows += [MiningRound(f"mine-{name}", plant=plant), MiningRound(f"mine-{name}-judged", "oracle", beta=BETA, plant=plant)]
        rows += [Training(f"{name}-{short(label)}", label, family, loss, plant=plant) for label, loss in losses.items()]
        plain = Training(f"{name}-mined", "mined", family, PLAIN, mined=f"mine-{name}", queries=half, negatives=2)
        masked = replace(plain, name=f"{name}-masked", title="mined, copies masked", rules=FalseNegatives(copies=0.95))
        judged = replace(plain, name=f"{name}-judged", title="mined, judge", mined=f"mine-{name}-judged")
        rows += [plain, masked, judged]
    for wrong in (0.1, 0.3):
        plant = Plant(wrong=wrong)
        rows += [
            Training(f"wrong-{wrong:g}-{short(label)}", label, f"wrong labels {wrong:g}", loss, plant=plant)
            for label, loss in losses.items()
        ]
    return tuple(rows)


def short(label: str) -> str:
    """For a row's name."""
    return label.split(maxsplit=1)[0].lower()


def large() -> Suite:
    """Twice the collages, names in 14 languages, 2.5 times the steps: half an hour on two cores with AVX-512."""
    made = small()
    size = Size(collages=1200, queries=400, languages=True)
    scale = replace(SMALL, size=size, steps=600, judge_steps=300, reranker_steps=400, align=400)
    return replace(made, name="large", scale=scale, what="the same rows, trained longer on more")


def gpu() -> Suite:
    """In-batch rows on a language model of 100 million weights and more; nothing is frozen but the vision tower."""
    scale = Scale(Size(collages=1200, queries=400), steps=600, encodings=512, rate=1e-4, align=400)
    rows = [e for e in (*hardness(), *mined(), *recipes()) if isinstance(e, Training) and not e.mined and not e.average]
    own = tuple(row for row in rows if not row.groups and row.name != "half-batch")
    return Suite("gpu", scale, own, "in-batch rows on a language model", backbone=SMOLLM)


SUITES = {"small": small, "confirm": confirm, "sensitivity": sensitivity, "large": large, "gpu": gpu, "tiny": tiny}


def suite_of(name: str) -> Suite:
    """By name. Raises RecipeError if there is none."""
    if name not in SUITES:
        raise RecipeError(unknown("suite", name, list(SUITES)))
    return SUITES[name]()
