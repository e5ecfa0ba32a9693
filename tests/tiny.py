"""Tiny random models of real architectures, and pictures to show them. No network, a fraction of a second each.

hardwon is imported inside functions: the shape checks install themselves before the first import.
"""

import io
import itertools
import string
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

WIDTH = 32  # of words and vectors
VISION_WIDTH = 128
SIZE = 64  # pixels: two by two picture tokens
MAX_TOKENS = 64
COLOURS = {"red": "#e02020", "green": "#20a040", "blue": "#2050e0", "yellow": "#f0d020", "black": "#101010"}
SHAPES = ("square", "circle", "triangle", "bar")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def tokenizer(extra=()):
    """A WordPiece tokenizer that knows the colours and shapes, and spells every other ASCII word letter by letter."""
    from transformers import BertTokenizer

    letters = string.ascii_lowercase + string.digits + string.punctuation
    words = [*SPECIAL, *letters, *(f"##{letter}" for letter in letters), *COLOURS, *SHAPES, "a", "the", "find", "it"]
    made = BertTokenizer(vocab={word: n for n, word in enumerate(dict.fromkeys(words))}, do_lower_case=True)
    if extra:
        made.add_special_tokens({"additional_special_tokens": list(extra)})
    made.model_max_length = MAX_TOKENS
    return made


def bert(size, layers=2):
    """A BERT with dropout."""
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=size,
        hidden_size=WIDTH,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=2 * MAX_TOKENS,
        initializer_range=0.2,  # far from the tiny numbers of a fresh BERT, whose vectors would all be alike
        hidden_dropout_prob=0.1,
        attention_probs_dropout_prob=0.1,
    )
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return BertModel(config).eval()


def tower():
    """A convolutional tower with stride 32 and the layers of EfficientNet, five blocks in all."""
    from transformers import EfficientNetConfig, EfficientNetModel

    from hardwon.models import small

    config = EfficientNetConfig(
        image_size=SIZE,
        hidden_dim=VISION_WIDTH,
        hidden_act="relu6",
        width_coefficient=0.1,  # eight channels nearly everywhere
        depth_coefficient=1.0,
        kernel_sizes=[3, 3, 5, 3],
        in_channels=[32, 16, 24, 80],
        out_channels=[16, 24, 80, 160],
        strides=[2, 2, 2, 2],
        num_block_repeats=[1, 2, 1, 1],
        expand_ratios=[1, 2, 2, 2],
        batch_norm_eps=1e-3,
        drop_connect_rate=0.0,
        squeeze_expansion_ratio=1e-6,
        depthwise_padding=[],
    )
    config.hidden_size = VISION_WIDTH
    with torch.random.fork_rng():
        torch.manual_seed(2)
        made = EfficientNetModel(config).eval()
        for parameter in made.parameters():
            torch.nn.init.kaiming_normal_(parameter) if parameter.dim() > 1 else torch.nn.init.ones_(parameter)
        made.load_state_dict(small.lite0_weights({}, made.state_dict()), strict=False)
        # One look at the pictures sets the running statistics: without them all pictures would look alike.
        pixels = [np.asarray(draw(colour, shape)) for colour in COLOURS for shape in SHAPES]
        with torch.no_grad():
            made.train()(torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 128 - 127 / 128)
    return made.eval()


def build_vlm(folder):
    """Save a model of the built-in backbone's architecture; reads text and pictures."""
    from hardwon.models import small

    words = tokenizer(extra=(small.IMAGE_TOKEN,))
    folder.mkdir(parents=True, exist_ok=True)
    small.save(small.fuse(bert(len(words)), tower(), words, size=SIZE), small.processor(words, size=SIZE), folder)
    return folder


def build_text(folder):
    """Save a sentence-transformers model that reads text only."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Normalize, Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling

    words = tokenizer()
    parts = folder.with_name(folder.name + "-parts")
    bert(len(words)).save_pretrained(parts)
    words.save_pretrained(parts)
    modules = [Transformer(str(parts)), Pooling(WIDTH, pooling_mode="mean"), Normalize()]
    SentenceTransformer(modules=modules, device="cpu").save(str(folder), create_model_card=False)
    return folder


def encoded(picture, kind="PNG", **more):
    """A picture as the bytes of a file."""
    file = io.BytesIO()
    picture.save(file, kind, **more)
    return file.getvalue()


def draw(colour, shape, size=SIZE):
    """A coloured shape on white."""
    picture = Image.new("RGB", (size, size), "white")
    pen = ImageDraw.Draw(picture)
    low, high, fill = size // 5, size - size // 5, COLOURS[colour]
    if shape == "square":
        pen.rectangle((low, low, high, high), fill=fill)
    elif shape == "circle":
        pen.ellipse((low, low, high, high), fill=fill)
    elif shape == "triangle":
        pen.polygon([(low, high), (high, high), (size // 2, low)], fill=fill)
    else:
        pen.rectangle((low // 2, size // 2 - 5, size - low // 2, size // 2 + 5), fill=fill)
    return picture


def draw_all(folder: Path) -> dict[str, Path]:
    """Twenty PNG files by caption ("red square" ...)."""
    folder.mkdir(parents=True, exist_ok=True)
    made = {}
    for colour, shape in itertools.product(COLOURS, SHAPES):
        path = folder / f"{colour}-{shape}.png"
        draw(colour, shape).save(path)
        made[f"{colour} {shape}"] = path
    return made


def clip(path, pictures):
    """An MP4 file of 64 x 64 that shows these pictures, a fifth of a second each."""
    import av

    with av.open(str(path), "w") as video:
        stream = video.add_stream("mpeg4", rate=5)
        stream.width = stream.height = 64
        for frame in (*map(av.VideoFrame.from_image, pictures), None):
            for packet in stream.encode(frame):
                video.mux(packet)


def examples(pictures):
    """Caption -> picture, with two negatives of its own: the same shape in another colour, the same colour in another shape."""
    from hardwon.items import Candidate, Example, Item

    captions = list(pictures)
    made = []
    for caption in captions:
        colour, shape = caption.split()
        near = [other for other in captions if other != caption and (colour in other or shape in other)][::3][:2]
        given = [Candidate(Item(images=(pictures[other],)), 0.25) for other in near]
        gold = Candidate(Item(images=(pictures[caption],)), 1.0, "gold")
        made.append(Example(Item(text=caption, instruction="find it"), (gold, *given), "shapes"))
    return tuple(made)


def texts():
    """Text-only examples: "red square" -> "the square is red", with one negative of its own."""
    from hardwon.items import Candidate, Example, Item

    pairs = list(itertools.product(COLOURS, SHAPES))
    made = []
    for (colour, shape), (other, _) in zip(pairs, pairs[len(SHAPES) :] + pairs[: len(SHAPES)], strict=True):
        gold = Candidate(Item(text=f"the {shape} is {colour}"), 1.0, "gold")
        made.append(
            Example(Item(text=f"{colour} {shape}"), (gold, Candidate(Item(text=f"the {shape} is {other}"), 0.5)), "texts")
        )
    return tuple(made)


def gradient_of(model):
    """All gradients of an embedder or a reranker as one vector; they are gone afterwards."""
    made = [p.grad.flatten() if p.grad is not None else torch.zeros(p.numel()) for p in model.module.parameters()]
    model.module.zero_grad(set_to_none=True)
    return torch.cat(made)


def relative(made, truth):
    """How far two vectors are apart, relative to the length of the second."""
    return float((made - truth).norm() / truth.norm())
