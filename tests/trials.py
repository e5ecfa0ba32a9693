"""How often tests with random input try: a sample at every commit, as much as one likes with HARDWON_TRIALS=20, say."""

import os

TIMES = int(os.environ.get("HARDWON_TRIALS", "1"))


def trials(few):
    """`few` at a commit, a multiple of it where more time is given."""
    return few * TIMES
