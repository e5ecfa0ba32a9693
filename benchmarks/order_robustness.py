"""Does the order in which candidates are shown decide the order that comes out?

    python -m benchmarks.order_robustness --out benchmarks/order_robustness_<hardware>_<date>.md

**Task.** "the largest, 17" of four things such as "tiny boat". Only the first place is ever taught, but as every size but the
least is the largest of some lists, that settles the order of all. A quarter of all things (size and noun) is held out and is
all that is measured, in lists of four sizes; their words are known. Chance is 1 of 4.

**Models.** A Qwen2 of 32 dimensions and two layers with random weights, trained by `hardwon.train`. As a `ListwiseReranker`
with `Pairwise() + Listwise()`, which see gold alone ("gold"), and with `JudgeAlignment` beside them on the same lists, whose
candidates are graded by their size as a judge would ("judged"); as a `Reranker` of pairs on gold, with a quarter of the steps.
The task is small because the model is: this shows what the method makes of a model that has learned its task, and nothing
about any model of a hub.

**What is measured.** A `ListwiseReranker` chooses itself in which orders it shows candidates: handing it shuffled lists changes
nothing ("shuffled", to the bit). So it is told to choose others, and Kendall's tau says how much of the result is owed to those
that it happened to choose (`order_robustness`: "tau", and "lowest" of any query). "right" is the tau with the true order of the
sizes. Scores are compared with a loop that writes each prompt by hand and asks transformers ("apart"). P@1 has a bootstrap
interval over the queries.
"""

import argparse
import itertools
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.losses import describe
from hardwon.evaluation import order_robustness
from hardwon.evaluation.robustness import kendall
from hardwon.items import Candidate, Example, Item
from hardwon.losses import JudgeAlignment, Listwise, Loss, Pairwise
from hardwon.metrics import interval
from hardwon.models import Listing, ListwiseReranker, Question, Reranker, score_lists
from hardwon.models.listwise import orders
from hardwon.training import Settings, train

SIZES = ("tiny", "small", "medium", "large", "huge", "endless")
NOUNS = ("boat", "house", "tree", "lamp", "stone", "hat", "door", "cloud", "chair", "bell", "ship", "cup")
SIZE, PERMUTATIONS = 4, (1, 2, 4, 8)
LISTING = Listing("Which?", window=SIZE)
GOLD: Loss = Pairwise() + Listwise()
GRADES = JudgeAlignment(temperature=1.0, judge_temperature=0.2)  # one size more is one nat more
COLUMNS = ("model", "permutations", "lists", "P@1", "right", "tau", "lowest", "shuffled", "apart", "seconds")
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant{{ '\\n' }}"
)
MARKS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
Lists = tuple[list[Item], list[list[Item]], list[np.ndarray]]  # queries, candidates, and how large each is asked to be


def examples(count: int, held_out: bool, judged: bool = False) -> list[Example]:
    """Lists whose first thing is gold; with `judged` all things have a grade, their size from 0 to 1.

    Those to be learned have every size but the least as the largest of some, so that the order of all is taught, and some
    things of one size. Those that are held out have things of different sizes, from the largest to the smallest.
    """
    places = itertools.product(range(len(SIZES)), range(len(NOUNS)))
    some = [place for place in places if (sum(place) % 4 == 0) == held_out]
    rng, made = random.Random(f"sizes:{held_out}"), []
    for number in range(count):
        top = 1 + number % (len(SIZES) - 1)
        sizes = (
            sorted(rng.sample(range(len(SIZES)), SIZE), reverse=True)
            if held_out
            else [top, *rng.choices(range(top), k=SIZE - 1)]
        )
        things = [rng.choice([place for place in some if place[0] == size]) for size in sizes]
        texts = [f"{SIZES[size]} {NOUNS[noun]}" for size, noun in things]
        grades = [size / (len(SIZES) - 1) if judged else None for size in sizes]
        if not judged:
            grades[0] = 1.0
        origins = ("gold", *["given"] * (SIZE - 1))
        given = [Candidate(Item(text=text), *rest) for text, *rest in zip(texts, grades, origins, strict=True)]
        # A number, since the places of a list are drawn by its query.
        made.append(Example(Item(text=f"the largest, {number}"), tuple(given), "sizes"))
    return made


def listed(some: Sequence[Example]) -> Lists:
    """What is measured of examples; their candidates fall from the first to the last."""
    items = [[c.item for c in e.candidates] for e in some]
    return [e.query for e in some], items, [-np.arange(len(row), dtype=float) for row in items]


def small(folder: Path) -> Path:
    """A language model of random weights that knows every word of the task."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    letters = pre_tokenizers.ByteLevel.alphabet()
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=1000, initial_alphabet=letters, special_tokens=list(MARKS), show_progress=False)
    said = [f"\n{' '.join(words)}" for words in itertools.product(SIZES, NOUNS)]
    said += ["\nthe largest, \nCandidate Query: Which? user assistant"] * 9
    learner.train_from_iterator(said, trainer)
    tokenizer: Any = transformers.PreTrainedTokenizerFast(
        tokenizer_object=learner, eos_token=MARKS[2], pad_token=MARKS[0], model_max_length=256, chat_template=TEMPLATE
    )
    config = transformers.Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=256, pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id, bos_token_id=None, tie_word_embeddings=False,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = transformers.Qwen2ForCausalLM(config)
        for name, weight in made.named_parameters():  # far from zero: different texts have to look different at once
            if weight.dim() > 1:
                torch.nn.init.normal_(weight, std=0.4 if "embed" in name else weight[0].numel() ** -0.5)
        made.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def by_hand(model: ListwiseReranker, query: Item, items: Sequence[Item]) -> np.ndarray:
    """Scores of prompts that are written here, one after the other, as transformers gives them: the naive twin."""
    known = sorted(items, key=lambda item: item.key)
    found: dict[str, list[float]] = {item.key: [] for item in items}
    for places in orders(len(items), model.listing.window, model.listing, query.key):
        said = f"{model.listing.wording}\n\nQuery:\n{query.text}"
        said += "".join(f"\n\nCandidate {label}:\n{known[n].text}" for label, n in zip(model.labels, places, strict=True))
        text = f"<|im_start|>user\n{said}<|im_end|>\n<|im_start|>assistant\n"
        with torch.no_grad():
            logits = model.body.transformer(**model.body.tokenizer(text, return_tensors="pt")).logits[0, -1]
        logits = logits[[model.body.tokenizer.convert_tokens_to_ids(label) for label in model.labels]]
        for n, value in zip(places, (logits - logits.mean()).tolist(), strict=True):
            found[known[n].key].append(value)
    return np.array([np.mean(found[item.key]) for item in items])


def row(name: str, model: Reranker | ListwiseReranker, lists: Lists, shuffles: int) -> tuple[str, ...]:
    """What is said of a reranker: see the module."""
    queries, items, truth = lists
    start = time.perf_counter()
    scores = score_lists(model, queries, items)
    took = time.perf_counter() - start
    right = interval(torch.tensor([float(values.argmax() == 0) for values in scores], dtype=torch.float64), seed=0)
    mixed = [random.Random(f"mix:{n}").sample(range(len(some)), len(some)) for n, some in enumerate(items)]
    again = score_lists(model, queries, [[some[n] for n in order] for some, order in zip(items, mixed, strict=True)])
    same = all((values[order] == new).all() for values, order, new in zip(scores, mixed, again, strict=True))
    apart, permutations = "-", "-"
    if isinstance(model, ListwiseReranker):
        few = list(zip(queries, items, scores, strict=True))[:8]
        apart = f"{max(float(np.abs(by_hand(model, q, i) - s).max()) for q, i, s in few):.0e}"
        permutations = str(model.listing.permutations)
    found = order_robustness(model, queries, items, shuffles=shuffles)
    order = np.mean([kendall(a, b) for a, b in zip(scores, truth, strict=True)])
    shown = f"{100 * right.mean:.0f} [{100 * right.low:.0f}, {100 * right.high:.0f}]"
    cells = (f"{order:.3f}", f"{found.mean:.3f}", f"{found.lowest:.2f}", "equal" if same else "differ", apart, f"{took:.1f}")
    return (name, permutations, str(len(queries)), shown, *cells)


def learned(model: Any, steps: int, asked: argparse.Namespace, judged: bool = False) -> str:
    """Train a reranker; says how."""
    settings = Settings(batch_size=asked.batch, negatives=SIZE - 1, learning_rate=3e-3, weight_decay=0.0, seed=asked.seed)
    start, some, loss = time.perf_counter(), examples(4000, held_out=False, judged=judged), GOLD
    train(model, some, loss + GRADES if judged else loss, steps=steps, settings=settings)
    return f"{steps} steps of {asked.batch} lists, {time.perf_counter() - start:.0f} s"


def asked_for(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.order_robustness", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--batch", type=int, default=8, help="lists per step")
    parser.add_argument("--lists", type=int, default=100, help="that are measured")
    parser.add_argument("--shuffles", type=int, default=4, help="other orders")
    parser.add_argument("--seed", type=int, default=0, help="of the training")
    parser.add_argument("--out", type=Path, help="FILE.md")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> None:
    """Train, measure, show, write."""
    asked = asked_for(arguments)
    lists = listed(examples(asked.lists, held_out=True))
    with tempfile.TemporaryDirectory() as home:
        folder = small(Path(home) / "small")
        model = ListwiseReranker.load(folder, listing=LISTING, device="cpu")
        rows, said = [row("lists, untrained", model, lists, asked.shuffles)], []
        for name in ("gold", "judged"):
            model = ListwiseReranker.load(folder, listing=LISTING, device="cpu")
            said.append(f"lists, {name}: {learned(model, asked.steps, asked, name == 'judged')}")
            model.save(Path(home) / name)
            for permutations in PERMUTATIONS:
                told = replace(LISTING, permutations=permutations)
                again = ListwiseReranker.load(Path(home) / name, listing=told, device="cpu")
                rows.append(row(f"lists, {name}", again, lists, asked.shuffles))
        pairs = Reranker.load(folder, question=Question("Is it? {yes} or {no}."), device="cpu")
        said.append(f"pairs: {learned(pairs, asked.steps // 4, asked)}")
        rows.append(row("pairs, gold", pairs, lists, asked.shuffles))
    show(rows, "; ".join(said))
    if asked.out:
        about = [f"- {key}: {value}" for key, value in describe(arguments, "order_robustness", "src/hardwon/models").items()]
        about.append(f"- trained: {'; '.join(said)}")
        lines = [f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS), *(f"| {' | '.join(cells)} |" for cells in rows)]
        asked.out.write_text("\n".join(["# Order robustness of rerankers", "", *about, "", *lines, ""]))


def show(rows: Sequence[Sequence[str]], trained: str) -> None:
    """Print the table."""
    table = Table(title=f"order robustness; trained: {trained}")
    for n, column in enumerate(COLUMNS):
        table.add_column(column, justify="right" if n else "left")
    for cells in rows:
        table.add_row(*cells)
    Console(highlight=False, width=140).print(table)


if __name__ == "__main__":
    main(sys.argv[1:])
