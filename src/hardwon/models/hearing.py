"""What a chat model would say next: logits of a few answers behind the last token of each prompt."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def heard(model: Any, given: Mapping[str, Any], last: Tensor, answers: Sequence[int]) -> tuple[Tensor, Any]:
    """Logits of some answers behind the last token of each row, [n a], float32; and the keys and values of all tokens.

    Args:
        model: of transformers, with a language model's head.
        given: its inputs.
        last: place of the last token of each row, [n].
        answers: ids of the tokens that count.
    """
    ids = list(answers)
    with listening(model.get_output_embeddings(), last, ids) as picked:
        made = model(**given, return_dict=True)
    logits = made.logits
    at_last = logits[:, 0] if picked else logits[torch.arange(len(last), device=logits.device), last.to(logits.device)]
    return at_last[:, ids].float(), getattr(made, "past_key_values", None)


@contextlib.contextmanager
def listening(head: Any, last: Tensor, answers: list[int]) -> Iterator[bool]:
    """Within the block a model's head reads the last token of each row only, and says the answers in float32.

    Numbers of 16 bits would be too coarse: of logits near 20, bfloat16 tells only those apart that differ by 0.125. Whatever
    the model does to its logits afterwards (scale them, cap them) it still does. Yields whether this head can be made to.
    """
    if not isinstance(head, nn.Linear):
        yield False
        return

    def pick(_head: Any, given: tuple[Tensor, ...]) -> Tensor:
        hidden = given[0]
        return hidden[torch.arange(len(last), device=hidden.device), last.to(hidden.device)][:, None]

    def say(_head: Any, given: tuple[Tensor, ...], logits: Tensor) -> Tensor:
        made = logits.float()
        if type(head) is nn.Linear:  # not where a subclass packs its weights
            bias = None if head.bias is None else head.bias[answers].float()
            with torch.autocast(made.device.type, enabled=False):
                exact = F.linear(given[0].float(), head.weight[answers].float(), bias)
            made[..., answers] = exact
        return made

    hooks = head.register_forward_pre_hook(pick), head.register_forward_hook(say)
    try:
        yield True
    finally:
        for hook in hooks:
            hook.remove()
