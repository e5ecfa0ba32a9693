"""Judges as a recipe names them."""

from dataclasses import dataclass, field
from pathlib import Path

from hardwon.errors import RecipeError
from hardwon.models import (
    Judge,
    ListwiseReranker,
    Question,
    RecordedJudge,
    RemoteSettings,
    Reranker,
    YesNo,
    load_reranker,
)
from hardwon.models.options import Dtype
from hardwon.models.precision import Precision
from hardwon.stages.base import Workspace

RECORDED = ".jsonl"


@dataclass(frozen=True)
class ChatModel:
    """A chat model that is asked Yes or No; see `Judge.load`.

    Attributes:
        model: folder, or a name on the hub.
        question: what is asked.
        dtype: number format of the weights; that of the checkpoint if None.
        max_pixels: width x height that a picture is scaled down to, for models that read pictures in their own size.
        tokens: of one forward pass, about.
    """

    model: str
    question: Question = field(default_factory=Question)
    dtype: Dtype | None = None
    max_pixels: int | None = None
    tokens: int = 8192


@dataclass(frozen=True)
class Server:
    """A chat model behind a server of the OpenAI protocol; see `RemoteJudge`.

    Attributes:
        url: up to and with the version, such as "http://localhost:8000/v1".
        model: one of those that it serves; may be left out if that is one.
        settings: how it is asked.
    """

    url: str
    model: str = ""
    settings: RemoteSettings = field(default_factory=RemoteSettings)


JudgeSpec = str | ChatModel | Server


def read_by(judge: JudgeSpec) -> tuple[str, ...]:
    """What of the workspace, or of the hub, a judge is made from.

    Raises:
        RecipeError: a url, which needs a `Server` around it.
    """
    if isinstance(judge, str) and "://" in judge:
        raise RecipeError(f"judge={judge!r} is the url of a server: write judge=Server({judge!r})")
    name = judge.model if isinstance(judge, ChatModel) else judge if isinstance(judge, str) else ""
    return (name,) if name else ()


def load_judge(workspace: Workspace, judge: JudgeSpec, precision: Precision, vision_cache: Path) -> Reranker | YesNo:
    """The judge that a recipe names: a reranker or recorded answers by their path, or one that is asked in words.

    Raises:
        RecipeError: a reranker that reads lists.
    """
    if isinstance(judge, Server):
        return Judge.remote(judge.url, judge.model, settings=judge.settings)
    if isinstance(judge, ChatModel):
        path, told = workspace.path(judge.model), judge
        return Judge.load(path, question=told.question, dtype=told.dtype, max_pixels=told.max_pixels, tokens=told.tokens)
    if judge.endswith(RECORDED):
        return RecordedJudge(workspace.path(judge))
    found = load_reranker(workspace.path(judge), vision_cache=vision_cache, precision=precision)
    if isinstance(found, ListwiseReranker):
        raise RecipeError(f"{judge} reads whole lists and does not judge a candidate by itself: train one with task='pairwise'")
    return found
