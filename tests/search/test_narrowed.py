"""What is lost of whole vectors, against a computation that has all of them at once."""

import numpy as np
import pytest

WIDTH = 24


def unit(count, seed=0):
    rows = np.random.default_rng(seed).standard_normal((count, WIDTH)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def share(whole, kept, asked, k):
    """Of the best k by whole vectors those that what is kept finds, on average."""
    one, other = whole[:asked] @ whole.T, kept[:asked] @ kept.T
    for scores in (one, other):
        np.fill_diagonal(scores, -np.inf)
    best = [np.argsort(-scores, axis=1)[:, :k] for scores in (one, other)]
    return np.mean([len(set(a) & set(b)) / k for a, b in zip(*best, strict=True)])


@pytest.mark.parametrize("batch", [1, 7, 64, 400])
@pytest.mark.parametrize(("dim", "dtype"), [(8, "float32"), (8, "float16"), (WIDTH, "float16")])
def test_it_is_what_all_vectors_at_once_tell(batch, dim, dtype):
    from hardwon.search.narrowed import Narrowing
    from hardwon.search.stores import Space

    vectors = unit(400)
    vectors[:6] = vectors[6:12]  # copies
    space = Space("m", WIDTH, dim, dtype)
    measure = Narrowing(space, k=10, most=30)
    for start in range(0, 400, batch):
        given = vectors[start : start + batch].copy()
        measure.add(given)
        given[:] = 0  # what is given is not leaned on
    found = measure.result()
    assert (found.asked, found.among, found.k) == (min(400, 30), 400, 10)
    truth = share(vectors, space.cut(vectors).astype(dtype).astype(np.float32), 30, 10)
    assert found.value.mean == pytest.approx(truth, abs=1e-6)
    assert found.value.low <= found.value.mean <= found.value.high
    assert truth < 0.7 if dim == 8 else truth > 0.98
    held = sum(each.nbytes for each in vars(measure).values() if isinstance(each, np.ndarray))
    assert held <= 30 * 4 * (WIDTH + dim + 3 * 10)  # those that ask, and their best


def test_fewer_than_are_to_be_looked_at():
    from hardwon.search.narrowed import Narrowing
    from hardwon.search.stores import Space

    measure = Narrowing(Space("m", WIDTH, 8))
    assert measure.result() is None
    measure.add(unit(1))
    assert measure.result() is None
    measure.add(unit(3, 1))
    found = measure.result()
    assert (found.asked, found.among, found.k, found.value.mean) == (4, 4, 3, 1)  # the others, all of them
    assert str(found).startswith("8 of 24 numbers in float32 find 1.000 [1.000, 1.000] of the best 3 of whole vectors (24 in ")
