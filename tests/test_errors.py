from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hardwon import errors
from hardwon.errors import (
    BadItem,
    BadItems,
    BadRow,
    BadRows,
    DataError,
    Diverged,
    HardwonError,
    MissingExtra,
    ModelError,
    unknown,
)


def test_the_tree_in_the_docstring_is_the_tree():
    drawn = [line.split("──")[1].split()[0] for line in errors.__doc__.splitlines() if "──" in line]
    classes = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, HardwonError)} - {
        "HardwonError"
    }
    assert sorted(drawn) == sorted(classes)
    for line in errors.__doc__.splitlines():
        if line.startswith("│   "):
            assert issubclass(getattr(errors, line.split("──")[1].split()[0]), errors.DataError)


def test_unknown_names_value_nearest_and_all():
    told = unknown("stage", "trian", ["train", "mine", "evaluate"])
    assert told == "unknown stage 'trian': did you mean 'train'? Valid: evaluate, mine, train"
    assert unknown("stage", "xyzzy", ["train", "mine"]) == "unknown stage 'xyzzy': Valid: mine, train"
    assert unknown("depth", 7, [5, 70]) == "unknown depth '7': did you mean '70'? Valid: 5, 70"


@given(st.text(max_size=8), st.sets(st.text(min_size=1, max_size=8), max_size=5))
def test_unknown_takes_any_text(value, valid):
    told = unknown("x", value, valid)
    assert told.startswith(f"unknown x {value!r}:")
    assert all(name in told for name in valid)


def test_diverged_names_step_and_queries():
    error = Diverged("loss is nan", 12, [f"{n:032d}" for n in range(10)], "Lower the learning rate.")
    assert error.step == 12
    assert len(error.keys) == 10
    assert str(error).startswith("loss is nan at step 12; no weight was changed. Queries of the batch: 000000000000, ")
    assert str(error).endswith(" .... Lower the learning rate.")
    assert "..." not in str(Diverged("x", 1, ["a" * 32]))


def test_bad_rows_show_ten_and_keep_all():
    error = BadRows([BadRow("a.csv", n, f"reason {n}") for n in range(12)], 40, "Mend them")
    lines = str(error).splitlines()
    assert lines[0] == "12 of 40 rows cannot be used:"
    assert lines[1] == "  a.csv:0: reason 0"
    assert lines[11:] == ["  ... and 2 more", "Mend them"]
    assert len(error.rows) == 12
    assert len(str(BadRows([BadRow("a", 1, "b")], 2)).splitlines()) == 2


def test_bad_items_are_listed_with_place_name_and_reason():
    item = SimpleNamespace(label="'<red.png> a kite'")
    error = BadItems([BadItem(item, f"reason {n}", f"query of example {n}") for n in range(12)], "40 examples", "Mend them")
    lines = str(error).splitlines()
    assert lines[0] == "12 items of 40 examples cannot be used:"
    assert lines[1] == "  query of example 0: '<red.png> a kite': reason 0"
    assert lines[11:] == ["  ... and 2 more", "Mend them"]
    assert len(error.items) == 12
    assert str(BadItems([BadItem(item, "why")], "2")) == "1 item of 2 cannot be used:\n  '<red.png> a kite': why"
    assert isinstance(error, DataError)
    assert isinstance(error, ModelError)


def test_missing_extra_says_how_to_install_it():
    error = MissingExtra("resvg-py", "demo")
    assert str(error) == "resvg-py is not installed. It comes with an extra: pip install 'hardwon[demo]'"
    assert str(MissingExtra("wandb")) == "wandb is not installed. It is no part of hardwon: pip install wandb"
    with pytest.raises(ImportError):
        raise error
