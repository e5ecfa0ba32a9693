import json
import random

import pytest
import torch
from safetensors.torch import save_file

from hardwon import store
from hardwon.store import Rows, Store

ALIKE = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(2, 3)}
RAGGED = {"a": torch.arange(6.0).view(2, 3), "a/grid": torch.tensor([1, 4, 2]), "b": torch.ones(5, 3, dtype=torch.bfloat16)}


def same(made, truth):
    return made.keys() == truth.keys() and all(
        torch.equal(made[key], value) and made[key].dtype == value.dtype for key, value in truth.items()
    )


def add(made, rows):
    made.add(list(rows), list(rows.values()))
    return made


@pytest.mark.parametrize("rows", [ALIKE, RAGGED], ids=["alike", "ragged"])
class TestRows:
    def test_are_there_again(self, rows, tmp_path):
        assert same(add(Store(tmp_path), rows).rows, rows)
        assert same(Store(tmp_path).rows, rows)
        assert same(add(Store(None), rows).rows, rows)

    def test_do_not_stay_in_memory(self, rows, tmp_path):
        made = add(Store(tmp_path), rows)
        assert all(made.rows[key].data_ptr() != value.data_ptr() for key, value in rows.items())

    def test_another_process_finds_them(self, rows, tmp_path):
        other = Store(tmp_path)
        add(Store(tmp_path), rows)
        assert other.rows == {}
        other.look()
        assert same(other.rows, rows)
        held = other.rows["a"].data_ptr()
        other.look()  # nothing is new: nothing is read again
        assert other.rows["a"].data_ptr() == held

    @pytest.mark.parametrize("left", [0, 5, -1])
    def test_a_truncated_file_is_as_good_as_none(self, rows, left, tmp_path):
        add(Store(tmp_path), rows)
        (file,) = tmp_path.glob("*.safetensors")
        file.write_bytes(file.read_bytes()[:left])
        again = Store(tmp_path)
        assert again.rows == {}
        add(again, rows)
        assert same(Store(tmp_path).rows, rows)

    def test_a_list_of_other_keys_is_not_believed(self, rows, tmp_path):
        add(Store(tmp_path), rows)
        (listed,) = tmp_path.glob("*.json")
        listed.write_text(json.dumps([*rows, "c"]))
        assert Store(tmp_path).rows == {}

    def test_two_writers_of_the_same_rows(self, rows, tmp_path, monkeypatch):
        """The second one writes all of its file while the first is in the middle of its own."""
        first, second = Store(tmp_path), Store(tmp_path)
        whole = store.save_file

        def slowly(tensors, path, head):
            monkeypatch.setattr(store, "save_file", whole)
            path.write_bytes(b"half a file")
            add(second, rows)
            assert path.read_bytes() == b"half a file"
            whole(tensors, path)

        monkeypatch.setattr(store, "save_file", slowly)
        add(first, rows)
        assert all(same(made.rows, rows) for made in (first, second, Store(tmp_path)))
        assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".safetensors"]


def test_a_writer_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def full(tensors, path, head):
        path.write_bytes(b"half a file")
        raise OSError("no space left on device")

    monkeypatch.setattr(store, "save_file", full)
    with pytest.raises(OSError, match="no space"):
        add(Store(tmp_path), ALIKE)
    assert list(tmp_path.iterdir()) == []


def test_what_earlier_versions_wrote_is_read(tmp_path):
    save_file({"rows": torch.stack(list(ALIKE.values()))}, tmp_path / "0.safetensors")
    (tmp_path / "0.json").write_text(json.dumps(list(ALIKE)))
    assert same(Store(tmp_path).rows, ALIKE)


def test_nothing_to_add(tmp_path):
    Store(tmp_path).add([], [])
    assert list(tmp_path.iterdir()) == []


def test_rows_of_many_files_are_found():
    """Parts of any size, keys that come again: as a dict has it."""
    rng, made, truth = random.Random(0), Rows(), {}
    for size in (1, 5, 0, 3, 1, 17):
        keys = [f"key {rng.randrange(12)}-{n}" for n in range(size)]
        rows = torch.rand(size, 2)
        made.keep(keys, rows)
        truth |= dict(zip(keys, rows, strict=True))
    assert list(made) == list(truth)
    assert len(made) == len(truth)
    assert all(torch.equal(made[key], row) for key, row in truth.items())
    assert "another" not in made
    with pytest.raises(KeyError):
        made["another"]
    with pytest.raises(ValueError, match="2 keys of 3 rows"):
        made.keep(["a", "b"], torch.zeros(3, 1))
    assert len(made) == len(truth)
