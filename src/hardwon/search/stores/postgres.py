"""PostgreSQL with pgvector: a table that many machines read and write, searched exactly (no approximate index is made)."""

from __future__ import annotations

import contextlib
import json
import re
import threading
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import quote, urlencode

import numpy as np

from hardwon.errors import ArtifactError, MissingExtra, RecipeError
from hardwon.search.stores.base import Entry, Match, Space, check_id, checked, missing

SPACES = "hardwon_spaces"  # table that says what the vectors of the other tables are
_BATCH = 2000
_SECRET = {"password", "sslpassword"}  # parameters of libpq that are not written down
_HOST = re.compile(r"[\w.-]+|[0-9a-f:]+", re.IGNORECASE)


def _psycopg() -> Any:
    try:
        import pgvector.psycopg  # noqa: F401
        import psycopg
    except ImportError:
        raise MissingExtra("psycopg and pgvector", "pgvector") from None
    return psycopg


def without_password(address: str) -> str:
    """The address as it may be written down; libpq takes a password from PGPASSWORD or ~/.pgpass as well.

    Raises:
        RecipeError: libpq cannot read it. It is not shown: any part of it may be one of a password.
        MissingExtra: psycopg is not installed.
    """
    psycopg = _psycopg()
    try:
        # As libpq reads it, which takes "#" and "?" in a password as they are, and a password among the parameters.
        said = psycopg.conninfo.conninfo_to_dict(address)
    except psycopg.ProgrammingError:
        raise RecipeError(
            "the store's address is none that PostgreSQL takes: postgresql://USER@HOST:PORT/DATABASE, with special characters "
            "as %XX, and a password in PGPASSWORD"
        ) from None
    if not _SECRET & said.keys():
        return address
    kept = {name: str(value) for name, value in said.items() if name not in _SECRET}
    host, port, user = kept.get("host", ""), kept.get("port", ""), kept.get("user", "")
    place = ""
    if _HOST.fullmatch(host) and (port.isdecimal() or not port):  # others, such as sockets and several hosts, stay parameters
        place = f"{quote(user, '')}{'@' if user else ''}{f'[{host}]' if ':' in host else host}{':' if port else ''}{port}"
        kept = {name: value for name, value in kept.items() if name not in ("host", "port", "user")}
    base = f"/{quote(kept.pop('dbname'), '')}" if "dbname" in kept else ""
    more = urlencode(kept, quote_via=quote)
    return f"postgresql://{place}{base}{'?' if more else ''}{more}"


class Postgres:
    """A store in a table of PostgreSQL.

    Args:
        address: postgresql://user@host:port/database.
        name: of the table.
        space: what its vectors are.
    """

    def __init__(self, address: str, name: str, space: Space):
        self.address, self.name, self._space = without_password(address), name, space
        self._asked, self._turn = address, threading.RLock()
        self._connection: Any = None
        try:
            with self._cursor() as cursor:
                found = None
                if cursor.execute("select to_regclass(%s)", (SPACES,)).fetchone()[0] is not None:
                    found = cursor.execute(f"select space from {SPACES} where name = %s", (name,)).fetchone()
            if found is None:
                raise ArtifactError(f"{self.address} holds no index {name}: build it with `hardwon index`")
            space.check(found[0], f"table {name} of {self.address}")
        except ArtifactError:
            self.close()
            raise

    @classmethod
    def create(cls, address: str, name: str, space: Space) -> Postgres:
        """A new, empty store.

        Raises:
            ArtifactError: there is one of that name, or the server lacks pgvector or cannot be reached.
        """
        psycopg, sql = _psycopg(), _psycopg().sql
        kind = "vector" if space.dtype == "float32" else "halfvec"
        try:
            with _connected(address) as connection, connection.transaction():
                # Two that begin at once would both find nothing.
                connection.execute("select pg_advisory_xact_lock(7205759403)")
                connection.execute("create extension if not exists vector")
                connection.execute(f"create table if not exists {SPACES} (name text primary key, space jsonb not null)")
                connection.execute(f"insert into {SPACES} values (%s, %s)", (name, json.dumps(space.to_json())))
                made = sql.SQL("create table {} (id uuid primary key, payload text not null, vector {} not null)")
                connection.execute(made.format(sql.Identifier(name), sql.SQL(f"{kind}({space.dim})")))
        except psycopg.errors.UniqueViolation:
            raise ArtifactError(f"{without_password(address)} holds an index {name} already: choose another name") from None
        except psycopg.Error as error:
            raise ArtifactError(
                f"{without_password(address)} cannot hold an index ({str(error).strip()}): check that pgvector is there, and "
                "that the user may create tables"
            ) from error
        return cls(address, name, space)

    @property
    def space(self) -> Space:
        """As `Store.space`."""
        return self._space

    def upsert(self, entries: Sequence[Entry], vectors: np.ndarray) -> None:
        """As `Store.upsert`."""
        vectors = checked(entries, vectors, self._space)
        told = self._sql("insert into {} values (%s, %s, %s) on conflict (id) do update set payload = excluded.payload, ")
        told += self._sql("vector = excluded.vector")
        # In one order, so that two writers never wait for each other.
        rows = sorted(
            ((entry.id, entry.payload, self._vector(row)) for entry, row in zip(entries, vectors, strict=True)),
            key=lambda row: row[0],
        )
        with self._cursor() as cursor:
            cursor.executemany(told, rows)

    def delete(self, ids: Sequence[str]) -> None:
        """As `Store.delete`."""
        with self._cursor() as cursor:
            cursor.execute(self._sql("delete from {} where id = any(%s::uuid[])"), (sorted(map(check_id, ids)),))

    def search(self, vectors: np.ndarray, k: int) -> list[list[Match]]:
        """As `Store.search`."""
        told = self._sql("select id, payload, -(vector <#> %s) from {} order by vector <#> %s limit %s")
        made = []
        with self._cursor() as cursor:
            for row in vectors:
                vector = self._vector(row)
                found = cursor.execute(told, (vector, vector, k)).fetchall()
                made.append([Match(Entry(key.hex, payload), float(score)) for key, payload, score in found])
        return made

    def rows(self, ids: Sequence[str] | None = None) -> Iterator[Entry]:
        """As `Store.rows`."""
        if ids is not None:
            found = self._those(ids, "payload")
            yield from (Entry(each, found[each]) for each in ids if each in found)
            return
        last = "0" * 32
        told = self._sql("select id, payload from {} where id > %s or (%s and id = %s) order by id limit %s")
        first = True
        while True:  # page by page: another may write meanwhile, and the connection is not held
            with self._cursor() as cursor:
                page = cursor.execute(told, (last, first, last, _BATCH)).fetchall()
            yield from (Entry(key.hex, payload) for key, payload in page)
            if len(page) < _BATCH:
                return
            last, first = page[-1][0].hex, False

    def vectors(self, ids: Sequence[str]) -> np.ndarray:
        """As `Store.vectors`."""
        found = self._those(ids, "vector")
        missing(ids, found)
        rows = [found[each] if isinstance(found[each], np.ndarray) else found[each].to_numpy() for each in ids]
        return np.array(rows, dtype=np.float32).reshape(len(ids), self._space.dim)

    def __len__(self) -> int:
        with self._cursor() as cursor:
            return int(cursor.execute(self._sql("select count(*) from {}")).fetchone()[0])

    def refresh(self) -> bool:
        """As `Store.refresh`: what others write is seen at once."""
        return False

    def close(self) -> None:
        """As `Store.close`."""
        with self._turn:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def _those(self, ids: Sequence[str], column: str) -> dict[str, Any]:
        told = self._sql(f"select id, {column} from {{}} where id = any(%s::uuid[])")
        with self._cursor() as cursor:
            return {key.hex: value for key, value in cursor.execute(told, (list(map(check_id, ids)),)).fetchall()}

    def _vector(self, row: np.ndarray) -> Any:
        if self._space.dtype == "float32":
            return row
        from pgvector import HalfVector

        return HalfVector(row)

    def _sql(self, text: str) -> Any:
        sql = _psycopg().sql
        return sql.SQL(text).format(sql.Identifier(self.name))

    @contextlib.contextmanager
    def _cursor(self) -> Iterator[Any]:
        """A transaction: one at a time, on a connection that is made anew when the server has closed it."""
        psycopg = _psycopg()
        with self._turn:
            if self._connection is None or self._connection.closed:
                self._connection = _connected(self._asked)
                _known(self._connection)
            try:
                with self._connection.transaction(), self._connection.cursor() as cursor:
                    yield cursor
            except psycopg.errors.UndefinedTable:
                raise ArtifactError(f"{self.address} holds no index {self.name} any more: build it again") from None
            except psycopg.OperationalError as error:
                self.close()
                raise ArtifactError(f"{self.address} does not answer ({str(error).strip()}): try again") from error


def _connected(address: str) -> Any:
    psycopg = _psycopg()
    try:
        return psycopg.connect(address, autocommit=True, connect_timeout=10)
    except psycopg.Error as error:
        raise ArtifactError(
            f"{without_password(address)} cannot be reached ({str(error).strip()}): check address, user and PGPASSWORD"
        ) from error


def _known(connection: Any) -> None:
    """Teach the connection what a vector is, where the server knows it."""
    psycopg = _psycopg()
    from pgvector.psycopg import register_vector

    with contextlib.suppress(psycopg.ProgrammingError):
        register_vector(connection)


def drop_table(address: str, name: str) -> None:
    """Remove a table and what is known of it. One that is gone is no error."""
    sql = _psycopg().sql
    with _connected(address) as connection, connection.transaction():
        connection.execute(sql.SQL("drop table if exists {}").format(sql.Identifier(name)))
        connection.execute(f"delete from {SPACES} where name = %s", (name,))
