import pytest
import stocked

from hardwon.search import stores


@pytest.fixture(scope="session")
def postgres():
    """Address of a real server."""
    with stocked.postgres() as address:
        yield address


@pytest.fixture(params=stocked.BACKENDS)
def backend(request, tmp_path):
    """What `--store` says for every kind of store, its folder, and a name that nobody has."""
    kind = request.param
    address = request.getfixturevalue("postgres") if kind == "postgresql" else kind
    name = stocked.stores_name(0)
    yield address, tmp_path, name
    stores.drop(address, tmp_path, name)
