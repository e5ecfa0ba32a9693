"""What may happen to a model between two runs, and an embedder that counts what it embeds."""

import torch

from hardwon.items import Item
from hardwon.models import Embedder


class Counting(Embedder):
    """An embedder that counts what it embeds."""

    embedded = 0

    def encode(self, items, *, progress=""):
        self.embedded += len(items)
        return super().encode(items, progress=progress)


def load(folder, **options):
    return Counting(Embedder.load(folder, device="cpu", **options).body)


def items(path):
    return [Item(text="red square"), Item("a bar", (path,)), Item(images=(path,), instruction="find it")]


def weight(model):
    with torch.no_grad():
        next(reversed(list(model.module.parameters()))).flatten()[0] += 1e-3


def prompt(model):
    model.body.model.prompts["query"] = "find the"
    model.body.model.default_prompt_name = "query"


def pooling(model):
    (part,) = [part for part in model.body.model if hasattr(part, "pooling_mode")]
    part.pooling_mode = "cls"


def narrower(model):
    model.body.model.to(torch.bfloat16)


def mean(model):
    model.body.model[0].processor.image_processor.image_mean = [0.4, 0.5, 0.5]


def rescale(model):
    model.body.model[0].processor.image_processor.rescale_factor = 1 / 256


def template(model):
    model.body.model[0].processor.chat_template = model.body.model[0].processor.chat_template + " "


def length(model):
    model.body.model.max_seq_length = 12


def tokens(model):
    model.body.tokenizer.add_tokens(["square"], special_tokens=True)


def truncation(model):
    model.body.tokenizer.truncation_side = "left"


def dimension(model):
    from sentence_transformers.base.modules.dense import Dense

    model.body.model.append(Dense(model.dim, 8))
    model.dim = 8


MODEL_CHANGES = [weight, prompt, pooling, narrower, mean, rescale, template, length, tokens, truncation, dimension]
