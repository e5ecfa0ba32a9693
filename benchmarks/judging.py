"""Time of judging 50 candidates of one query that holds a picture, with its prompt's beginning computed once and every time.

    python -m benchmarks.judging --out benchmarks/judging_<hardware>_<date>.md
    python -m benchmarks.judging --model Qwen/Qwen2.5-VL-3B-Instruct --device cuda

**Model.** A Qwen2-VL with random weights, made here, since nothing is downloaded: a language model of 8 layers of width 512, a
vision tower of 6 layers of width 256, and a tokenizer learned from the question's own words, so that texts come to about as
many tokens as with a real one. Large enough for its time to be that of matrix products; a tiny one would measure Python. Of
its answers nothing counts but that all contenders give the same. Or `--model`.

**Pairs.** One query: a picture of 224 x 224 pixels (64 tokens) with an instruction and a text. Its candidates are 50 texts of
12 words; or 20 pictures of the same size, which no way of judging can look at fewer times than there are.

**Contenders.** "shared": `Judge` as users call it. "separate": the same model, one whole prompt after the other. "batched":
whole prompts, as many together as fit into the same number of tokens. Everything runs once per round in an order that rotates;
medians over rounds, after one that is not counted, in which the logits must agree to 1e-4 (to 0.5 in fewer than 32 bits).
"""

import argparse
import io
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from benchmarks.losses import describe
from hardwon.items import Item
from hardwon.models import Judge, Pair
from hardwon.models.question import WORDING

COLUMNS = ("candidates", "shared s", "separate s", "batched s", "x separate", "x batched", "pairs/s", "apart")
SIDE = 224  # pixels
WORDS = "a red kite over the grey sea at dusk with two boats and an old stone pier in front of white houses".split()
TOKENS = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{% for part in message.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}<|im_start|>assistant{{ '\\n' }}"
)


def tokenizer() -> Any:
    """Qwen's, with words of the question and of the candidates."""
    import json

    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import Qwen2Tokenizer

    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    letters = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=2000, initial_alphabet=letters, show_progress=False)
    learner.train_from_iterator([WORDING, "Query:", "Candidate:", "Yes", "No", *(f" {word}" for word in WORDS)] * 2, trainer)
    state = json.loads(learner.to_str())["model"]
    vocabulary = {**state["vocab"], "<|endoftext|>": len(state["vocab"])}
    merges: Any = [tuple(pair) for pair in state["merges"]]
    return Qwen2Tokenizer(vocab=vocabulary, merges=merges, extra_special_tokens=list(TOKENS), image_token="<|image_pad|>")


def model() -> tuple[Any, Any]:
    """A Qwen2-VL with random weights, and a processor that reads pictures as that of Qwen2-VL does, but no video."""
    import transformers

    words = tokenizer()
    ids = {f"{name}_token_id": words.convert_tokens_to_ids(f"<|{name}_pad|>") for name in ("image", "video")}
    ids |= {f"vision_{name}_token_id": words.convert_tokens_to_ids(f"<|vision_{name}|>") for name in ("start", "end")}
    text = {
        "hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8,
        "num_attention_heads": 8, "num_key_value_heads": 2,
        "vocab_size": len(words), "max_position_embeddings": 4096, "pad_token_id": words.pad_token_id,
        "bos_token_id": None, "eos_token_id": words.eos_token_id,
        "rope_parameters": {"rope_type": "default", "mrope_section": [8, 12, 12], "rope_theta": 1e6},
    }  # fmt: skip
    vision = {"hidden_size": 512, "embed_dim": 256, "depth": 6, "num_heads": 4, "mlp_ratio": 4, "patch_size": 14}
    torch.manual_seed(0)
    made = transformers.Qwen2VLForConditionalGeneration(
        transformers.Qwen2VLConfig(text_config=text, vision_config=vision, **ids)
    )
    pictures = transformers.Qwen2VLImageProcessorPil(patch_size=14, merge_size=2, temporal_patch_size=2)
    return made.eval(), transformers.PaddleOCRVLProcessor(pictures, words, chat_template=TEMPLATE)


def picture(n: int) -> bytes:
    """A picture of blots; another one for another number."""
    draw = np.random.default_rng(n)
    blots = Image.fromarray(draw.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    made = io.BytesIO()
    blots.save(made, "PNG")
    return made.getvalue()


def pairs(kind: str, count: int) -> list[Pair]:
    """One query with a picture, and candidates of a kind."""
    draw = random.Random(0)
    query = Item(text=" ".join(WORDS[:8]), images=(picture(0),), instruction="find the old pier in front of the houses")
    texts = [f"{' '.join(draw.choices(WORDS, k=12))} {n}" for n in range(count)]
    return [(query, Item(texts[n]) if kind == "texts" else Item(images=(picture(n + 1),))) for n in range(count)]


def measure(judges: dict[str, Judge], some: Sequence[Pair], rounds: int) -> tuple[dict[str, float], float]:
    """Median seconds by contender, and how far apart their logits are at most."""
    runs: dict[str, Callable[[], Any]] = {name: lambda judge=judge: judge.judge(some) for name, judge in judges.items()}
    said = {name: run() for name, run in runs.items()}
    truth = said["separate"]
    apart = max(float(np.abs(m.yes - truth.yes).max() + np.abs(m.no - truth.no).max()) for m in said.values())
    if not apart <= (1e-4 if judges["separate"].model.dtype == torch.float32 else 0.5):
        raise AssertionError(f"the contenders' logits differ by {apart}: nothing here could be compared")
    took: dict[str, list[float]] = {name: [] for name in runs}
    names = list(runs)
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            start = time.perf_counter()
            runs[name]()
            took[name].append(time.perf_counter() - start)
    return {name: statistics.median(seconds) for name, seconds in took.items()}, apart


def cells(kind: str, count: int, seconds: dict[str, float], apart: float) -> tuple[str, ...]:
    """A row of the table."""
    shared = seconds["shared"]
    ratios = (shared / seconds["separate"], shared / seconds["batched"])
    times = (f"{seconds[name]:.2f}" for name in ("shared", "separate", "batched"))
    return (f"{count} {kind}", *times, *(f"{ratio:.2f}" for ratio in ratios), f"{count / shared:,.1f}", f"{apart:.0e}")


def main(arguments: Sequence[str]) -> None:
    """Measure, show, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.judging", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default="", help="folder or name; a random one if left out")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--texts", type=int, default=50, help="candidates of the first row")
    parser.add_argument("--pictures", type=int, default=20, help="candidates of the second row")
    parser.add_argument("--rounds", type=int, default=3, help="that are counted")
    parser.add_argument("--out", type=Path, help="FILE.md")
    asked = parser.parse_args(arguments)
    if asked.model:
        loaded = Judge.load(asked.model, device=asked.device)
        inner, processor = loaded.model, loaded.prompts.processor
    else:
        inner, processor = model()
        inner = inner.to(asked.device)
    judges = {
        "shared": Judge(inner, processor),
        "separate": Judge(inner, processor, share=False, tokens=1),
        "batched": Judge(inner, processor, share=False),
    }
    rows = []
    for kind, count in (("texts", asked.texts), ("pictures", asked.pictures)):
        rows.append(cells(kind, count, *measure(judges, pairs(kind, count), asked.rounds)))
    table = Table(title="candidates of one query with a picture")
    for n, column in enumerate(COLUMNS):
        table.add_column(column, justify="right" if n else "left")
    for row in rows:
        table.add_row(*row)
    Console(highlight=False, width=140).print(table)
    if asked.out:
        about = [f"- {key}: {value}" for key, value in describe(arguments, "judging", "src/hardwon/models").items()]
        lines = [f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS), *(f"| {' | '.join(row)} |" for row in rows)]
        asked.out.write_text("\n".join(["# Time of judging the candidates of a query", "", *about, "", *lines, ""]))


if __name__ == "__main__":
    main(sys.argv[1:])
