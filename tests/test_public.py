"""The public names: which they are, and that nobody pays for them before they are used."""

import subprocess
import sys

import pytest

import hardwon

NAMES = [
    "Candidate", "Embedder", "Example", "Fused", "HardwonError", "Index", "Item", "Judge", "ListwiseReranker", "LoRA", "Mining",
    "Report", "Reranker", "Settings", "data", "evaluate", "losses", "mine", "train",
]  # fmt: skip


def python(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_the_names_are_these():
    assert hardwon.__all__ == NAMES
    assert dir(hardwon) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_each_can_be_had_and_is_documented(name):
    value = getattr(hardwon, name)
    assert value.__doc__
    assert value.__module__.startswith("hardwon.") if name not in ("data", "losses") else value.__name__ == f"hardwon.{name}"


def test_another_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'hardwon' has no attribute 'Trainer'"):
        hardwon.Trainer  # noqa: B018


def test_verbs_are_functions_although_packages_have_names_like_theirs():
    """The sub-packages are called training, mining and evaluation, so that importing them cannot replace the verbs."""
    code = (
        "import hardwon.training, hardwon.mining, hardwon.evaluation, hardwon.stages, inspect, hardwon;"
        "print(*[n for n in ('train', 'mine', 'evaluate') if inspect.isfunction(getattr(hardwon, n))])"
    )
    assert python(code) == ["train", "mine", "evaluate"]


def test_importing_costs_nothing():
    heavy = ("torch", "numpy", "transformers", "sentence_transformers", "faiss", "pyarrow", "PIL", "rich")
    assert python(f"import sys, hardwon; print(*[m for m in {heavy} if m in sys.modules])") == []
    # Records and errors are had without a learning library.
    light = python(f"import sys, hardwon; hardwon.Item, hardwon.HardwonError; print(*[m for m in {heavy} if m in sys.modules])")
    assert light == []


def test_the_version_is_that_of_the_package():
    import importlib.metadata

    assert importlib.metadata.version("hardwon") == hardwon.__version__
