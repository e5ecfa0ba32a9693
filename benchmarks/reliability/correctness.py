"""Group B: whether a model gives what it should."""

from benchmarks.reliability.pytests import by_tests
from benchmarks.reliability.trial import Trial

BAD = "tests/models/test_bad_input.py"

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
)  # fmt: skip
