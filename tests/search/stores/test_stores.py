"""What every store promises: a real folder, LanceDB, a real PostgreSQL with pgvector, Qdrant's local mode."""

import gc
from dataclasses import replace

import numpy as np
import pytest
import stocked
from stocked import SPACE, entry, unit
from trials import trials

from hardwon.errors import ArtifactError, DataError, ModelError, RecipeError
from hardwon.search import stores
from hardwon.search.stores import Space, named

MISMATCHES = {
    "another model": {"model": "other"},
    "other weights of the model": {"model": "model-2"},
    "a wider model": {"width": 32},
    "fewer dimensions kept": {"dim": 8},
    "another type of numbers": {"dtype": "float16"},
    "another prompt of the items": {"instruction": "find it"},
    "another metric": {"metric": "euclid"},
    "another layout": {"layout": 99},
}


def created(backend):
    return stores.create(*backend, SPACE)


def test_random_writes_agree_with_a_dict(backend):
    stores.create(*backend, SPACE).close()
    assert stocked.random_steps(lambda: stores.opened(*backend, SPACE), trials(15), seed=1) == 0


@pytest.mark.parametrize("kind", MISMATCHES)
def test_what_was_made_with_something_else_is_refused_and_left_as_it_is(backend, kind, monkeypatch):
    monkeypatch.setattr("hardwon.search.stores.base.METRICS", ("cosine", "euclid"))  # as a later version may have them
    store = created(backend)
    store.upsert([entry(1)], unit(1, 1))
    store.close()
    with pytest.raises(ArtifactError, match=r"is .* there and .* here.*(--rebuild|anew)"):
        stores.opened(*backend, replace(SPACE, **MISMATCHES[kind]))
    again = stores.opened(*backend, SPACE)
    assert [row.id for row in again.rows()] == [entry(1).id]
    again.close()


def test_bad_vectors_and_ids_change_nothing(backend):
    store = created(backend)
    store.upsert([entry(n) for n in range(3)], unit(3, 7))
    for bad in stocked.bad_vectors(12, seed=0):
        with pytest.raises(ModelError):
            store.upsert([entry(n) for n in (1, 2, 9)], bad)
    with pytest.raises(DataError, match="stands twice"):
        store.upsert([entry(4), entry(4)], unit(2, 0))
    with pytest.raises(DataError, match="one for each"):
        store.upsert([entry(4)], unit(2, 0))
    with pytest.raises(DataError, match="32 hexadecimal"):
        store.upsert([entry(4)._replace(id="X'; drop table rows; --")], unit(1, 0))
    with pytest.raises(DataError, match="no row"):
        store.vectors([entry(99).id])
    kept = {entry(n).id: (entry(n).payload, unit(3, 7)[n]) for n in range(3)}
    assert stocked.differs(store, kept, seed=3) == ""
    store.close()


def test_what_is_there_cannot_be_made_and_what_is_not_cannot_be_opened(backend):
    address, folder, name = backend
    created(backend).close()
    with pytest.raises(ArtifactError):
        created(backend)
    with pytest.raises(ArtifactError):
        stores.opened(address, folder, name + "x", SPACE)


def test_half_floats_are_near(backend):
    space = replace(SPACE, dtype="float16")
    store = stores.create(*backend, space)
    vectors = unit(30, 2)
    store.upsert([entry(n) for n in range(30)], vectors)
    store.refresh()
    found = store.search(vectors[:4], 1)
    assert [row[0].entry.id for row in found] == [entry(n).id for n in range(4)]
    np.testing.assert_allclose(store.vectors([entry(5).id])[0], vectors[5], atol=1e-3)
    store.close()


def test_a_killed_writer_loses_nothing_that_was_acknowledged(backend):
    address, folder, _ = backend
    lost, torn, slow, batches = stocked.killed(address, folder, trials(1), seed=3)
    if address == "qdrant":  # its local mode writes point by point: a batch that nobody acknowledged may be there in part
        torn = 0
    assert (lost, torn, slow) == (0, 0, 0)
    assert batches >= 2


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Qdrant's lock file, when it is refused
def test_processes_write_and_read_together(backend):
    address, folder, name = backend
    if address == "qdrant":  # its local mode says that it takes one at a time
        store = created(backend)
        with pytest.raises(ArtifactError, match="one at a time"):
            stores.opened(address, folder, name, SPACE)
        gc.collect()
        store.close()
        return
    count, wanted, errors = stocked.together(address, folder, 2, trials(4), 1)
    assert errors == []
    assert count == wanted


def test_a_damaged_file_is_found_out(tmp_path):
    assert stocked.damaged(tmp_path, trials(30), seed=5) == []


def test_small_segments_become_few_and_an_answer_keeps_its_version(tmp_path):
    store = stores.Embedded.create(tmp_path / "s", SPACE)
    reader = stores.Embedded(tmp_path / "s", SPACE)
    store.upsert([entry(0)], unit(1, 0))
    reader.refresh()
    before = reader.search(unit(1, 0), 5)
    for number in range(1, 60):
        store.upsert([entry(number)], unit(1, number))
    assert reader.search(unit(1, 0), 5) == before  # until it looks again
    assert reader.refresh()
    assert len(reader) == 60
    assert len(list((tmp_path / "s").glob("*.rows"))) < 12
    store.delete([entry(n).id for n in range(50)])
    store.refresh()
    store.compact()
    assert len(list((tmp_path / "s").glob("*.rows"))) == 1
    assert {row.id for row in store.rows()} == {entry(n).id for n in range(50, 60)}


def test_a_file_that_a_killed_writer_left_is_removed(tmp_path):
    store = stores.Embedded.create(tmp_path / "s", SPACE)
    (tmp_path / "s/0123456789abcdef.safetensors").write_bytes(b"half")
    (tmp_path / "s/.x.rows.1.tmp").write_bytes(b"half")
    store.upsert([entry(1)], unit(1, 1))
    assert sorted(path.suffix for path in (tmp_path / "s").iterdir()) == ["", ".json", ".rows", ".safetensors"]


def test_another_writer_is_told_of(tmp_path):
    from hardwon.search.stores.embedded import one_writer

    with (
        one_writer(tmp_path),
        pytest.raises(ArtifactError, match="another process has been writing"),
        one_writer(tmp_path, 0.01),
    ):
        pass


def test_names_and_addresses():
    assert named("lance") == "lance"
    assert named("http://me:secret@host:6333") == "http://me@host:6333"
    with pytest.raises(RecipeError, match="did you mean 'lance'"):
        stores.kind_of("lanse")


PLAIN = "postgresql://me@host:5432/base?sslmode=require"
ADDRESSES = {  # as one may type them: as they are written down
    PLAIN: PLAIN,
    "postgres://me@host/base": "postgres://me@host/base",
    "postgresql://me:secret@host:5432/base?sslmode=require": PLAIN,
    "postgresql://me:secret#secret@host:5432/base?sslmode=require": PLAIN,
    "postgresql://me:secret?secret@host:5432/base?sslmode=require": PLAIN,
    "postgresql://me:[secret@host:5432/base?sslmode=require": PLAIN,
    "postgresql://me@host:5432/base?sslmode=require&password=secret": PLAIN,
    "postgresql://me@host:5432/base?sslpassword=secret&sslmode=require": PLAIN,
    "postgresql://host/base?user=me&password=secret": "postgresql://me@host/base",
    "postgresql://m%40e:secret@[::1]/base": "postgresql://m%40e@[::1]/base",
    "postgresql://me:secret@/base?host=/tmp/x%20y": "postgresql:///base?user=me&host=%2Ftmp%2Fx%20y",
    "postgresql://me:secret@a:1,b:2/base": "postgresql:///base?user=me&host=a%2Cb&port=1%2C2",
}


@pytest.mark.parametrize("address", ADDRESSES)
def test_passwords_are_not_written_down(address):
    conninfo = pytest.importorskip("psycopg.conninfo")
    kept = named(address)
    assert kept == ADDRESSES[address] and named(kept) == kept
    said = {name: value for name, value in conninfo.conninfo_to_dict(address).items() if "password" not in name}
    assert conninfo.conninfo_to_dict(kept) == said  # it is still the same place


@pytest.mark.parametrize("address", ["postgresql://me:secret%zz@host/base", "postgresql://me:secret@host/base?secret=secret"])
def test_an_address_that_cannot_be_read_is_not_shown(address):
    pytest.importorskip("psycopg")
    with pytest.raises(RecipeError, match="none that PostgreSQL takes") as caught:
        named(address)
    assert "secret" not in str(caught.value)


def test_an_id_of_another_form_is_refused(backend):
    store = created(backend)
    for wrong in ("40", "../x", "x" * 32, "A" * 32, "0" * 31 + "\n"):
        for ask in (store.vectors, store.delete, lambda ids: list(store.rows(ids))):
            with pytest.raises(DataError, match="32 hexadecimal"):
                ask([wrong])
    store.close()


def test_a_space_says_what_cannot_be():
    with pytest.raises(DataError, match="choose 1 to that many"):
        Space("m", 4, 5)
    with pytest.raises(DataError, match="unknown dtype"):
        Space("m", 4, 4, dtype="int4")
    with pytest.raises(ModelError, match="all zero"):
        Space("m", 4, 2).cut(np.array([[0, 0, 0, 1]], dtype=np.float32))
