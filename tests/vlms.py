"""Tiny random models of the architectures that people start from, saved as they come from a hub and as embedders.

Configuration classes, processors and special tokens are those of the real models; sizes, weights, words and the wording of
the chat templates are ours. Every builder writes a folder that plain `SentenceTransformer(folder)` loads, and beside it, under
`bare(folder)`, what a hub holds: the generating model and its processor, without anything of sentence-transformers.

The processors of LLaVA-OneVision and of the Qwen family read video as well, which needs torchvision. For users without it there
is `video=False`: another processor of transformers that reads no video, needs no torchvision and gives the same tokens and
pixels for text and a picture. hardwon is not needed here.
"""

import functools
import json

import torch

WIDTH = 32  # of words and vectors
MAX_TOKENS = 256
ROTARY = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10_000.0}
CHATML = ("<|im_start|>", "<|im_end|>")
QWEN = (*CHATML, "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>")
SENTENCES = (
    "a red square and a blue circle", "the green triangle is above the yellow bar", "find a picture of it",
    "represent the given image", "what is it", "user assistant system", "the quick brown fox jumps over the lazy dog",
)  # fmt: skip


def chatml(picture, film="", *, after_picture=""):
    """A chat template in the form of Qwen's: every turn between markers, the assistant's turn opened at the end."""
    seen = f"{{% elif part.type == 'video' %}}{film}" if film else ""
    return (
        "{% for message in messages %}<|im_start|>{{ message.role }}\n"
        "{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}"
        f"{{% if part.type == 'image' %}}{picture}{after_picture}{seen}"
        "{% elif part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}{% endif %}"
        "<|im_end|>\n{% endfor %}<|im_start|>assistant{{ '\\n' }}"
    )


LLAVA = (
    "{% for message in messages %}{% if message.role != 'system' %}{{ message.role | upper }}: {% endif %}"
    "{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}{% if part.type == 'image' %}<image>\n"
    "{% elif part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}{% endif %} {% endfor %}ASSISTANT:"
)

STRINGS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant{{ '\\n' }}"
)


def bare(folder):
    """Where the same weights lie as on a hub."""
    return folder.with_name(folder.name + "-bare")


def words(suffix=""):
    """Vocabulary and merges of a byte-level BPE, learned here: every text can be written with it."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    learner = Tokenizer(models.BPE(end_of_word_suffix=suffix))
    learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    letters = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=len(letters) + 100, initial_alphabet=letters, end_of_word_suffix=suffix, show_progress=False
    )
    learner.train_from_iterator(SENTENCES, trainer)
    state = json.loads(learner.to_str())["model"]
    vocabulary = state["vocab"]
    for letter in sorted(letters):  # also at the end of a word
        vocabulary.setdefault(letter + suffix, len(vocabulary))
    return vocabulary, [tuple(pair) for pair in state["merges"]]


def generic_tokenizer(special, before="", after="", **names):
    """A byte-level tokenizer of no particular model, with the markers of one around every text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary, merges = words()
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(list(special))
    around = [token for token in (before, after) if token]
    inner.post_processor = processors.TemplateProcessing(
        single=" ".join(part for part in (before, "$A", after) if part),
        special_tokens=[(token, inner.token_to_id(token)) for token in around],
    )
    return PreTrainedTokenizerFast(tokenizer_object=inner, model_max_length=MAX_TOKENS, **names)


def qwen_tokenizer(special=QWEN, *, side="left", added=(), **names):
    """Qwen's tokenizer with a vocabulary of ours; `added` are control tokens that it does not call special."""
    from tokenizers import AddedToken
    from transformers import Qwen2Tokenizer

    vocabulary, merges = words()
    made = Qwen2Tokenizer(
        vocab={**vocabulary, "<|endoftext|>": len(vocabulary)},
        merges=merges,
        extra_special_tokens=list(special),
        model_max_length=MAX_TOKENS,
        padding_side=side,
        **names,
    )
    made.add_tokens([AddedToken(token, special=False, normalized=False) for token in added])
    return made


def random_weights(kind, config):
    """A model with weights from a seed, far enough from zero that different inputs give different vectors."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        made = kind(config).eval()
        for name, parameter in made.named_parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.4 if "embed" in name else parameter[0].numel() ** -0.5)
    return made


def decoder(kind, tokenizer, **more):
    """Configuration of a small decoder."""
    return {
        "model_type": kind, "vocab_size": len(tokenizer), "hidden_size": WIDTH, "intermediate_size": 64,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 1024,
        "pad_token_id": tokenizer.pad_token_id, "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id, "attention_dropout": 0.0, **more,
    }  # fmt: skip


def save(model, processor, folder, pooling="lasttoken"):
    """Write `bare(folder)`, and `folder` with the modules that sentence-transformers puts around it."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Normalize, Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling

    model.save_pretrained(bare(folder))
    processor.save_pretrained(bare(folder))
    transformer = Transformer(str(bare(folder)))
    pools = [Pooling(WIDTH, pooling_mode=pooling)] if pooling else []
    made = SentenceTransformer(modules=[transformer, *pools, Normalize()], device="cpu")
    made.save(str(folder), create_model_card=False)
    return folder


def build_clip(folder):
    """CLIP: two towers, no chat template; text is read at its end marker."""
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPProcessor, CLIPTokenizer

    vocabulary, merges = words("</w>")
    for token in ("<|startoftext|>", "<|endoftext|>"):
        vocabulary[token] = len(vocabulary)
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=77)
    pictures = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    small = {"hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config=small
        | {"vocab_size": len(tokenizer), "max_position_embeddings": 77, "projection_dim": WIDTH}
        | {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")},
        vision_config=small | {"image_size": 32, "patch_size": 8, "projection_dim": WIDTH},
        projection_dim=WIDTH,
    )
    return save(random_weights(CLIPModel, config), CLIPProcessor(pictures, tokenizer), folder, pooling="")


def build_siglip(folder):
    """SigLIP: two towers; text is filled up to a fixed length and read at the last place, be it a filler or not.

    The real tokenizer needs sentencepiece; like it, this one lower-cases nothing that matters here, ends a text with `</s>`,
    fills up with the same token and gives no attention mask.
    """
    from transformers import SiglipConfig, SiglipImageProcessorPil, SiglipModel, SiglipProcessor

    tokenizer = generic_tokenizer(
        ("</s>", "<unk>"), after="</s>", eos_token="</s>", pad_token="</s>", unk_token="<unk>", model_input_names=["input_ids"]
    )
    tokenizer.model_max_length = 64
    small = {"hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = SiglipConfig(
        text_config=small
        | {"vocab_size": len(tokenizer), "max_position_embeddings": 64, "projection_size": WIDTH}
        | dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), tokenizer.eos_token_id),
        vision_config=small | {"image_size": 32, "patch_size": 8},
    )
    pictures = SiglipImageProcessorPil(size={"height": 32, "width": 32})
    return save(random_weights(SiglipModel, config), SiglipProcessor(pictures, tokenizer), folder, pooling="")


def build_llava(folder, *, patch=8, side="left"):
    """LLaVA 1.5: CLIP's vision tower, all patches of its last layer but one, a Llama. `patch`: as the processor believes."""
    from transformers import CLIPImageProcessorPil, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

    tokenizer = generic_tokenizer(
        ("<s>", "</s>", "<unk>", "<pad>", "<image>"), before="<s>", padding_side=side,
        bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>", image_token="<image>",
    )  # fmt: skip
    config = LlavaConfig(
        text_config=decoder("llama", tokenizer),
        vision_config={
            "model_type": "clip_vision_model", "hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 2, "image_size": 32, "patch_size": 8, "projection_dim": WIDTH,
        },
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=16,
    )  # fmt: skip
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
        tokenizer=tokenizer,
        patch_size=patch,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=LLAVA,
    )
    return save(random_weights(LlavaForConditionalGeneration, config), processor, folder)


def build_llava_onevision(folder, *, video=True, side="left"):
    """LLaVA-OneVision: SigLIP's vision tower, a picture as a whole and in tiles, Qwen2.

    `<image>` and `<video>` are known to its tokenizer as control tokens, but not listed among the special ones.
    """
    import transformers
    from tokenizers import AddedToken

    tokenizer = qwen_tokenizer(CHATML, side=side)
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in ("<image>", "<video>")])
    grid = [[32, 32], [32, 64], [64, 32], [64, 64]]
    config = transformers.LlavaOnevisionConfig(
        text_config=decoder("qwen2", tokenizer),
        vision_config={
            "model_type": "siglip_vision_model", "hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 2, "image_size": 32, "patch_size": 8, "vision_use_head": False,
        },
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=grid,
    )  # fmt: skip
    looks = {"size": {"height": 32, "width": 32}, "image_grid_pinpoints": grid, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    shared = {"tokenizer": tokenizer, "vision_feature_select_strategy": "full"}
    if video:
        processor = transformers.LlavaOnevisionProcessor(
            image_processor=transformers.LlavaOnevisionImageProcessorPil(**looks),
            video_processor=transformers.LlavaOnevisionVideoProcessor(size={"height": 32, "width": 32}),
            num_image_tokens=16,
            chat_template=chatml("<image>", "<video>", after_picture="\n"),
            **shared,
        )
    else:  # the same for one picture; of several, each is read in tiles
        processor = transformers.LlavaNextProcessor(
            image_processor=transformers.LlavaNextImageProcessorPil(**looks, crop_size={"height": 32, "width": 32}),
            patch_size=8,
            chat_template=chatml("<image>", after_picture="\n"),
            **shared,
        )
    return save(random_weights(transformers.LlavaOnevisionForConditionalGeneration, config), processor, folder)


def qwen_processor(name, tokenizer, video):
    """The processor of a model of the Qwen family: pictures of any shape, from 4 to 16 tokens each."""
    import transformers

    film = "<|vision_start|><|video_pad|><|vision_end|>" if video else ""
    template = chatml("<|vision_start|><|image_pad|><|vision_end|>", film)
    sizes = {"patch_size": 8, "merge_size": 2, "temporal_patch_size": 2}
    sizes["size"] = {"shortest_edge": 4 * 16**2, "longest_edge": 16 * 16**2}
    pictures = transformers.Qwen2VLImageProcessorPil(**sizes)
    if not video:  # the same tokens and pixels; this processor reads no video, so it needs no torchvision
        return transformers.PaddleOCRVLProcessor(pictures, tokenizer, chat_template=template)
    films = transformers.Qwen3VLVideoProcessor if name == "Qwen3VL" else transformers.Qwen2VLVideoProcessor
    return getattr(transformers, f"{name}Processor")(pictures, tokenizer, films(**sizes), chat_template=template)


def build_qwen(name, folder, vision, *, video, side, heads=None, added=()):
    """A model of the Qwen family: pictures in their own shape and size, positions in three dimensions.

    `heads`: what the decoder's attention has of its own; `added`: see `qwen_tokenizer`.
    """
    import transformers

    tokenizer = qwen_tokenizer(side=side, added=added, **({} if video else {"image_token": "<|image_pad|>"}))
    parts = {"image": "image_pad", "video": "video_pad", "vision_start": "vision_start", "vision_end": "vision_end"}
    ids = {f"{part}_token_id": tokenizer.convert_tokens_to_ids(f"<|{token}|>") for part, token in parts.items()}
    kind = {"Qwen2VL": "qwen2_vl", "Qwen2_5_VL": "qwen2_5_vl", "Qwen3VL": "qwen3_vl"}[name]
    text = decoder(f"{kind}_text", tokenizer, **({"rope_parameters": ROTARY} | (heads or {})))
    vision = {"hidden_size": WIDTH, "depth": 2, "num_heads": 2, "patch_size": 8} | vision
    config = getattr(transformers, f"{name}Config")(text_config=text, vision_config=vision, **ids)
    processor = qwen_processor(name, tokenizer, video)
    return save(random_weights(getattr(transformers, f"{name}ForConditionalGeneration"), config), processor, folder)


def build_qwen2_vl(folder, *, video=True, side="left"):
    """Qwen2-VL."""
    return build_qwen("Qwen2VL", folder, {"embed_dim": WIDTH, "mlp_ratio": 2}, video=video, side=side)


def build_qwen2_5_vl(folder, *, video=True, side="left"):
    """Qwen2.5-VL: the vision tower's first layer looks at a picture in windows."""
    vision = {"out_hidden_size": WIDTH, "intermediate_size": 64, "window_size": 32, "fullatt_block_indexes": [1]}
    return build_qwen("Qwen2_5_VL", folder, vision, video=video, side=side)


def build_qwen3_vl(folder, *, video=True, side="left"):
    """Qwen3-VL: features of the vision tower's first layer are added to the decoder's; control tokens that are not special."""
    vision = {"out_hidden_size": WIDTH, "intermediate_size": 64, "num_position_embeddings": 64, "deepstack_visual_indexes": [0]}
    heads = {"rope_parameters": ROTARY | {"mrope_interleaved": True}, "head_dim": 8}
    return build_qwen("Qwen3VL", folder, vision, video=video, side=side, heads=heads, added=("<think>", "</think>"))


def build_words(folder, template=STRINGS):
    """A language model that reads text only, as a hub holds it."""
    from transformers import AutoModelForCausalLM, Qwen2Config

    tokenizer = qwen_tokenizer(CHATML)
    tokenizer.chat_template = template
    settings = {k: v for k, v in decoder("qwen2", tokenizer).items() if k != "model_type"}
    model = random_weights(AutoModelForCausalLM.from_config, Qwen2Config(**settings))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


DUAL = {"clip": build_clip, "siglip": build_siglip}
DECODERS = {
    "llava": build_llava,
    "llava-onevision": build_llava_onevision,
    "qwen2-vl": build_qwen2_vl,
    "qwen2.5-vl": build_qwen2_5_vl,
    "qwen3-vl": build_qwen3_vl,
}
WITHOUT_VIDEO = {
    f"{name} without video": functools.partial(DECODERS[name], video=False) for name in ("llava-onevision", "qwen2-vl")
}
