"""Load what is served."""

import importlib.util
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from hardwon import artifacts
from hardwon.errors import ArtifactError, MissingExtra, RecipeError
from hardwon.models import Embedder
from hardwon.search import is_index, model_named, open_index
from hardwon.stages.reranking import Rerank

PACKAGES = ("fastapi", "uvicorn", "prometheus_client")


def serve(  # noqa: PLR0913  (each of them is one thing that people set)
    place: str,
    *,
    rerank: Rerank | None,
    host: str,
    port: int,
    key_name: str,
    name: str,
    device: str | None,
    limits: Sequence[str],
    ready: Callable[[str], object],
    negatives: Path | None = None,
    instructions: Sequence[str] = (),
) -> None:
    """Serve an index or a model: see `hardwon.serve.app.run`.

    Args:
        place: an index made by `hardwon index`, a model's folder, or its name on the hub.
        rerank: a reranker, and how searches use it; None for none.
        host: see `run`.
        port: see `run`.
        key_name: environment variable that holds the key; "" for none.
        name: what clients call the model; "" for the last two parts of its path.
        device: of the models.
        limits: fields of `Limits`, as NAME=VALUE.
        ready: see `run`.
        negatives: an artifact of `hardwon mine`, shown at /inspect; None for none.
        instructions: that the page offers for queries.

    Raises:
        MissingExtra: a package that is not installed.
        RecipeError: no key where one is needed, an unknown limit, or as `Rerank.load`.
        ArtifactError: an index that is damaged or was made by another model, or as `Rerank.load`.
        ModelError: a model that cannot be loaded.
    """
    check_packages()
    from hardwon.serve import app
    from hardwon.serve.api import Served
    from hardwon.serve.limits import Limits

    key = _key(key_name)
    app.check_host(host, key)
    chosen = Limits().changed(_settings(limits))
    inspection = None if negatives is None else inspected(negatives)
    folder, index = Path(place), None
    if is_index(folder):
        where = model_named(folder)
        embedder = Embedder.load(where, device=device)
        index = open_index(folder, embedder)
    elif (folder / "manifest.json").is_file():
        raise ArtifactError(f"{folder} holds neither an index nor a model: make an index with `hardwon index`")
    else:
        where = place
        embedder = Embedder.load(place, device=device)
    fused = None if rerank is None else rerank.load(device=device)
    ranker = "" if rerank is None else called(rerank.model)
    served = Served(embedder, name or called(where), index, fused, ranker, tuple(instructions), inspection)
    app.run(served, chosen, host=host, port=port, key=key, ready=ready)


def inspected(negatives: Path) -> Callable[[], str]:
    """Makes the page of mined negatives when it is asked for.

    Raises:
        ArtifactError: an artifact of another kind, damaged, or without a ledger.
    """
    from hardwon.stages.inspection import page_of

    manifest = artifacts.load(negatives, "negatives")
    if not (negatives / "ledger.parquet").is_file():
        raise ArtifactError(f"{negatives} holds no ledger.parquet: mine again")
    return lambda: page_of(negatives, manifest, home="/")


def check_packages() -> None:
    """Raise MissingExtra for the first package that is not installed."""
    for package in PACKAGES:
        if importlib.util.find_spec(package) is None:
            raise MissingExtra(package, "serve")


def called(model: str | Path) -> str:
    """What clients call a model: the last two parts of its path, as on the hub."""
    path = Path(model)
    return "/".join((path.resolve() if path.exists() else path).parts[-2:])


def _key(name: str) -> str:
    key = os.environ.get(name, "") if name else ""
    if name and not key:
        raise RecipeError(f"the environment variable {name} is not set: export {name}=... with a key of your choice")
    return key


def _settings(limits: Sequence[str]) -> dict[str, str]:
    for limit in limits:
        if "=" not in limit:
            raise RecipeError(f"a limit is set as NAME=VALUE, got {limit!r}")
    return dict(limit.split("=", 1) for limit in limits)
