"""Group A: bad input."""

from benchmarks.reliability.pytests import by_tests
from benchmarks.reliability.trial import Trial

BAD, PICTURES = "tests/models/test_bad_input.py", "tests/test_pictures.py"
SHAPES = "mode or orientation or exif or first_frame or later_frame or transparent or without_a_white"

TRIALS: tuple[Trial, ...] = (
    by_tests(
        "A1",
        "picture files cut, flipped, spliced, zeroed or replaced, from reading to training",
        "0 crashes, at most 2 s each, every one named",
        f"{BAD} a1_",
        each=60,
        full=3000,
    ),
    by_tests("A2", "one bit flipped in a stored picture", "all caught, no false alarm", f"{BAD} a2", each=50, full=1000),
    by_tests("A3", "decompression bombs", "refused from the header", "tests/test_picture_caps.py bombs", each=21, full=21),
    by_tests(
        "A4", "modes, transparency, orientations, first frames", "0 differing pixels", f"{PICTURES} {SHAPES}", each=72, full=72
    ),
    by_tests(
        "A5", "extreme shapes through every processor", "vectors, or errors with names", f"{BAD} a5", each=12 * 9, full=40 * 9
    ),
    by_tests(
        "A6",
        "strange texts, float32, bfloat16 and float16, five models",
        "0 vectors that are not finite or not of length 1",
        f"{BAD} unit_vector",
        each=15 * 5,
        full=2050 * 5 // 4,  # lists of about four texts
    ),
    by_tests("A7", "texts of 1 MB", "cut before the tokenizer", f"{BAD} a7", each=15, full=15),
    by_tests(
        "A8",
        "special tokens in texts at four places each, nine models",
        "neighbours' vectors equal to the bit",
        f"{BAD} a8",
        each=4,
        full=20,
    ),
    by_tests(
        "A9", "lengths of text, pictures and sizes, seven models", "no error in the model, pictures whole", f"{BAD} a9",
        each=20 * 7, full=1000,
    ),
    by_tests("A10", "one bad item among 32", "the others as without it", f"{BAD} a10", each=11, full=500),
    by_tests("A11", "video files cut, flipped, spliced, zeroed or replaced; uneven pace, no frames, huge frames",
             "0 crashes, at most 2 s each, every one named", "tests/data/test_frames.py", each=50, full=1000),
)  # fmt: skip
