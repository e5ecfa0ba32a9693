"""Where rows and vectors are kept: embedded in a folder, in LanceDB, in PostgreSQL with pgvector, or in Qdrant."""

import shutil
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from hardwon.errors import RecipeError, unknown
from hardwon.search.compressed import Form
from hardwon.search.stores.base import Entry, Match, Space, Store, checked
from hardwon.search.stores.embedded import Embedded

__all__ = [
    "KINDS",
    "Embedded",
    "Entry",
    "Match",
    "Space",
    "Store",
    "checked",
    "create",
    "kind_of",
    "named",
    "opened",
]

KINDS = ("embedded", "lance", "postgresql://USER@HOST/DATABASE", "http://HOST:6333", "qdrant")


def kind_of(store: str) -> str:
    """The kind of a store by what `--store` says.

    Raises:
        RecipeError: none of `KINDS`.
    """
    scheme = store.partition("://")[0] if "://" in store else store
    kinds = {"embedded": "embedded", "lance": "lance", "postgresql": "postgresql", "postgres": "postgresql"}
    kinds |= {"http": "qdrant", "https": "qdrant", "qdrant": "qdrant"}
    if scheme not in kinds:
        raise RecipeError(unknown("store", store, KINDS))
    return kinds[scheme]


def named(store: str) -> str:
    """What may be written down of a store: without a password.

    Raises:
        RecipeError: none of `KINDS`, or an address that cannot be read.
        MissingExtra: a package that is not installed.
    """
    kind = kind_of(store)
    if kind == "postgresql":
        from hardwon.search.stores.postgres import without_password

        return without_password(store)
    if "://" not in store:
        return store
    parts = urlsplit(store)
    user, at, place = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"{user.split(':')[0]}{at}{place}"))


def opened(store: str, folder: Path, name: str, space: Space, form: Form | None = None) -> Store:
    """A store that is there.

    Args:
        store: what `--store` says: one of `KINDS`.
        folder: of the index; embedded, lance and qdrant (its local mode) lie in it.
        name: of the table.
        space: what its vectors are.
        form: of an embedded store in memory.

    Raises:
        ArtifactError: none, damaged, out of reach, or with vectors of another kind.
        MissingExtra: a package that is not installed.
        RecipeError: an unknown store.
    """
    kind = kind_of(store)
    if kind == "embedded":
        return Embedded(folder / name, space, form)
    if kind == "lance":
        from hardwon.search.stores.lance import Lance

        return Lance(folder / "lance", name, space)
    if kind == "postgresql":
        from hardwon.search.stores.postgres import Postgres

        return Postgres(store, name, space)
    from hardwon.search.stores.qdrant import Qdrant

    return Qdrant(folder / "qdrant" if store == "qdrant" else store, name, space)


def create(store: str, folder: Path, name: str, space: Space, form: Form | None = None) -> Store:
    """A new, empty store; arguments and errors as of `opened`, ArtifactError also for one that is there."""
    kind = kind_of(store)
    if kind == "embedded":
        return Embedded.create(folder / name, space, form)
    if kind == "lance":
        from hardwon.search.stores.lance import Lance

        return Lance.create(folder / "lance", name, space)
    if kind == "postgresql":
        from hardwon.search.stores.postgres import Postgres

        return Postgres.create(store, name, space)
    from hardwon.search.stores.qdrant import Qdrant

    return Qdrant.create(folder / "qdrant" if store == "qdrant" else store, name, space)


def drop(store: str, folder: Path, name: str) -> None:
    """Remove a store and all its rows, whatever its vectors are; arguments as of `opened`. One that is gone is no error."""
    kind = kind_of(store)
    if kind == "embedded":
        shutil.rmtree(folder / name, ignore_errors=True)
    elif kind == "lance":
        from hardwon.search.stores.lance import drop_table

        drop_table(folder / "lance", name)
    elif kind == "postgresql":
        from hardwon.search.stores.postgres import drop_table as drop_from

        drop_from(store, name)
    else:
        from hardwon.search.stores.qdrant import drop_collection

        drop_collection(folder / "qdrant" if store == "qdrant" else store, name)
