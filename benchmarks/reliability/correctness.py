"""Group B: whether a model gives what it should."""

from benchmarks.reliability.pytests import by_tests
from benchmarks.reliability.trial import Outcome, Trial
from hardwon.data.assets import ASSETS, fetch
from hardwon.data.emoji.catalogue import read_concepts
from hardwon.items import Item
from hardwon.models import Embedder
from hardwon.search.compressed import Form, recalls

BAD = "tests/models/test_bad_input.py"
GOALS = {Form("int8"): 0.98, Form("binary"): 0.95}


def quantised(_: int, seed: int) -> Outcome:
    """B6: recall of ten against float32, names of emoji as a sentence encoder sees them."""
    assets = fetch(name for name, asset in ASSETS.items() if asset.demo)
    folder = next(assets["language"].rglob("model.safetensors")).parent
    names = sorted({concept.name for concept in read_concepts(assets).values()})
    vectors = Embedder.load(folder, device="cpu").encode([Item(name) for name in names], progress="encoding")
    forms = [Form(kind, dim) for dim in (None, 192, 96) for kind in ("float32", "int8", "binary")]
    found = recalls(vectors, forms)
    failed = sum(row.value.low < GOALS.get(row.form, 0) for row in found)
    told = "; ".join(f"{row.form}: {row.value.mean:.3f} [{row.value.low:.3f}, {row.value.high:.3f}]" for row in found[1:])
    return Outcome(len(forms), failed, f"{len(vectors):,} texts: {told}")


TRIALS: tuple[Trial, ...] = (
    by_tests(
        "B1",
        "items in batches of 2, 7 and 32, padding left and right, seven models, float32 and bfloat16",
        "cosine with the single item 0.99999 (0.999); 0 changes among the best ten",
        f"{BAD} b1",
        each=5,
        full=190,  # with eleven texts 201 items
    ),
    by_tests(
        "B2",
        "hardwon against sentence-transformers on every architecture",
        "cosine 0.9999",
        "tests/models/test_architectures.py vectors_are_those or saved_copy or doctor_finds_nothing",
        each=27,
        full=27,
    ),
    by_tests(
        "B3",
        "weights, versions and devices that change after saving",
        "named; above 0.001 of cosine the doctor fails",
        "tests/models/test_golden.py",
        each=11,
        full=11,
    ),
    by_tests("B4", "weights that are missing or renamed", "an error every time", f"{BAD} TestWeights", each=29, full=29),
    by_tests(
        "B5",
        "folders loaded by plain SentenceTransformer where hardwon is not installed",
        "the same vectors to 1e-6",
        "tests/models/test_plain.py",
        each=4,
        full=4,
    ),
    Trial("B6", "smaller vectors of a real sentence encoder", "recall of ten: int8 0.98, signs rescored 0.95", 9, quantised),
    by_tests(
        "B7", "vectors of strange texts", "length 1 to 0.001", f"{BAD} unit_vector", each=15 * 5, full=10_000 // 4
    ),
)  # fmt: skip
