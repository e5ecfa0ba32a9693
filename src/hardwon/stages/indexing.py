"""From a folder to an index that follows it: what is new or has changed is encoded, what is gone is removed."""

import contextlib
import os
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from hardwon.data.gather import Reading
from hardwon.data.read_files import missing_path
from hardwon.errors import ArtifactError, DataError, HardwonError, RecipeError
from hardwon.models.embedder import Embedder
from hardwon.models.scorer import Encoder
from hardwon.progress import console
from hardwon.search import canaries, stores
from hardwon.search.about import About, new_name
from hardwon.search.compressed import Form, enough
from hardwon.search.stored import FILE
from hardwon.search.stores import Space, Store
from hardwon.search.stores.embedded import one_writer
from hardwon.stages import media
from hardwon.stages.counts import TARGET, Counts, K, told
from hardwon.stages.following import Run
from hardwon.stages.sourcing import Source, copyable

__all__ = ["Counts", "Wanted", "check_path", "index_path", "told"]

BUILDING = "building.json"
STALE = 0.1  # share of rows that may change before what a form costs is measured again
LEAST = 100  # whole vectors, beside those of earlier runs, from which it is worth while to tell what is lost of them


@dataclass(frozen=True)
class Wanted:
    """What is asked of an index; None is what the index has, or the default of a new one.

    Attributes:
        store: as `stores.KINDS`.
        form: "float32", "float16", "int8" or "binary": how vectors are searched.
        dimensions: numbers of a vector that are kept.
        instruction: that items without one of their own are encoded with.
        reading: how files are read.
        rebuild: make everything anew, and put it in the place of what is there when it is ready; with another store, or smaller
            vectors, of the same model, the vectors are copied.
    """

    store: str | None = None
    form: str | None = None
    dimensions: int | None = None
    instruction: str | None = None
    reading: Reading = field(default_factory=Reading)
    rebuild: bool = False


def index_path(encoder: Encoder, model: str, path: Path, out: Path, wanted: Wanted | None = None) -> Counts:
    """Make or bring up to date the index of a folder or file.

    Every batch is durable when it has been written, so a run that was killed goes on where it was. Rows of other folders that
    the index holds are left alone.

    Args:
        encoder: the model.
        model: its folder or name, which is written down.
        path: what to index.
        out: folder of the index.
        wanted: settings.

    Raises:
        DataError: the path does not exist, or holds nothing that can be used.
        ArtifactError: the index is damaged, was built by another model or with other settings, or is being written.
        MissingExtra: a package that is not installed.
    """
    wanted = wanted or Wanted()
    _ours(out)
    out.mkdir(parents=True, exist_ok=True)
    with one_writer(out, wait=1.0):
        if isinstance(encoder, Embedder) and "video" not in encoder.body.modalities:
            wanted = replace(wanted, reading=replace(wanted.reading, apart=True))
        there = _there(out, wanted)
        about = _described(encoder, model, out, wanted, there)
        new = there is None or wanted.rebuild
        file = out / (BUILDING if wanted.rebuild and (out / FILE).is_file() else FILE)
        if new:
            about, store = _begun(encoder, out, about, wanted, there, file)
        else:
            about, store = _continued(encoder, out, about, wanted, there)
        counts, earlier = Counts(space=about.space), _earlier(encoder, out, about, wanted, there)
        try:
            source = Source(encoder, store, counts, earlier)
            for each in _paths(path, out, there if wanted.rebuild else None):
                run = Run(source, each, out, about, store, wanted.reading, counts)
                run.about.write(file)
                run.run()
                about = run.about
            if not counts.rows and counts.failed:
                raise DataError(f"nothing of {path} could be indexed; the first reason: {counts.failed[0]}")
            about = _measured(_narrowed(about, source, counts, there), store, counts)
            shown = media.used(row.payload for row in store.rows()) if media.there(out) else set[str]()
            if file.name == FILE:
                about.write(file)
            else:
                store.close()  # of a store that one process at a time can have open, the old table is out of reach until then
                if earlier is not None:
                    earlier.close()
                about = _swapped(encoder if earlier is None else None, out, about, wanted, file)
            media.clean(out, shown, [name for _, name in about.before])
            return counts
        finally:
            store.close()
            if earlier is not None:
                earlier.close()


def check_path(path: Path) -> None:
    """Raise DataError for a path that does not exist, before a model is loaded for it."""
    if not path.exists():
        raise DataError(missing_path(path))


def _ours(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise ArtifactError(f"{out} is a file: choose another folder")
    known = (FILE, BUILDING, canaries.FILE, ".lock")
    if out.is_dir() and any(out.iterdir()) and not any((out / name).exists() for name in known):
        raise ArtifactError(f"{out} is not empty and holds no index of `hardwon index`: choose another folder")


def _there(out: Path, wanted: Wanted) -> About | None:
    """The index that is there, if there is one."""
    if not (out / FILE).is_file():
        return None
    try:
        return About.read(out / FILE)
    except ArtifactError:
        if wanted.rebuild:  # which is what the message asks for
            return None
        raise


def _paths(path: Path, out: Path, there: About | None) -> list[Path]:
    """What to index: of a rebuild also all that the index holds besides."""
    others = [] if there is None else [(out / each).resolve() for each in there.paths]
    return [*(each for each in others if each != path.resolve() and each.exists()), path]


def _begun(encoder: Encoder, out: Path, about: About, wanted: Wanted, there: About | None, file: Path) -> tuple[About, Store]:
    """A new store, or the one that an interrupted build has left."""
    address = wanted.store or about.store
    if file.name == BUILDING and file.is_file():
        with contextlib.suppress(ArtifactError):
            begun = About.read(file)
            if there is not None and begun.name == there.name:  # killed when all was done but to remove this file
                file.unlink()
            elif (begun.space, begun.store, begun.form.kind) == (about.space, about.store, about.form.kind):
                return begun, stores.opened(address, out, begun.name, begun.space, begun.form)
            else:
                stores.drop(_address(begun.store, wanted), out, begun.name)
    store = stores.create(address, out, about.name, about.space, about.form)
    if file.name == FILE:
        canaries.keep(encoder, out)
    about.write(file)
    return about, store


def _continued(encoder: Encoder, out: Path, about: About, wanted: Wanted, there: About | None) -> tuple[About, Store]:
    """The store of an index that is there, if it is what is asked for."""
    assert there is not None
    about.space.check(there.space.to_json(), str(out))
    for name, one, other in (("store", stores.named(there.store), about.store), ("form", there.form.kind, about.form.kind)):
        if one != other:
            raise ArtifactError(f"{out} has {name} {one!r}, not {other!r}: leave --{name} out, or build anew with --rebuild")
    drift = canaries.drift(encoder, out, there.space.model)
    if drift is not None and drift < canaries.ALARM:
        raise ArtifactError(
            f"the model gives other vectors than when {out} was made (mean cosine {drift:.5f} over {canaries.COUNT} canaries): "
            "another version of a library or another device computes; go back to it, or build anew with --rebuild"
        )
    store = stores.opened(wanted.store or there.store, out, there.name, there.space, there.form)
    # The address too: an earlier version has written down passwords that it did not see.
    return replace(there, settings=about.settings, store=about.store), store


def _described(encoder: Encoder, model: str, out: Path, wanted: Wanted, there: About | None) -> About:
    """The index as it is asked for, under a new name."""
    store = stores.named(wanted.store or (there.store if there else "embedded"))
    kind = wanted.form or (there.form.kind if there else "float32")
    if stores.kind_of(store) != "embedded" and kind not in ("float32", "float16"):
        raise RecipeError(f"form {kind} is for the embedded store; {store} keeps float32 or float16")
    cut = there.space.dim if there and there.space.dim < there.space.width else encoder.dim
    said = wanted.instruction if wanted.instruction is not None else there.space.instruction if there else ""
    dtype = "float16" if kind == "float16" else "float32"
    space = Space(encoder.fingerprint, encoder.dim, wanted.dimensions or cut, dtype, said)
    if kind == "binary" and space.dim % 8:
        raise RecipeError(f"binary packs eight numbers into a byte: dimensions must be a multiple of 8, got {space.dim}")
    folder = Path(model)
    named = os.path.relpath(folder.resolve(), out.resolve()) if folder.exists() else model
    named = named if named.startswith(".") or not folder.exists() else f"./{named}"
    return About(named, space, store, new_name(), Form(kind), settings=asdict(wanted.reading))


def _earlier(encoder: Encoder, out: Path, about: About, wanted: Wanted, there: About | None) -> Store | None:
    """The index that is there, where a rebuild only keeps its vectors elsewhere or smaller: they are copied, not made again.

    A rebuild that asks for nothing else than there is makes all anew, and so does one by a model that gives other vectors now.
    """
    if there is None or not wanted.rebuild or not copyable(there.space, about.space):
        return None
    if (stores.named(there.store), there.form.kind, there.space) == (about.store, about.form.kind, about.space):
        return None
    try:
        drift = canaries.drift(encoder, out, there.space.model)
        if drift is not None and drift < canaries.ALARM:
            raise ArtifactError(f"the model gives other vectors than when {out} was made (mean cosine {drift:.5f})")
        return stores.opened(_address(there.store, wanted), out, there.name, there.space)
    except HardwonError as error:
        console().print(f"no vectors are copied, all are made anew: {error}", style="yellow", markup=False)
        return None


def _narrowed(about: About, source: Source, counts: Counts, there: About | None) -> About:
    """With what is lost of whole vectors, if this run has seen enough of them to tell."""
    if source.narrowing is None:
        return about
    known, found = about.measured.get("narrowed"), source.narrowing.result()
    if found is not None and (source.all_seen or found.among >= max(LEAST, STALE * counts.rows)):
        counts.narrowed, counts.partly = found, not source.all_seen
        known = {"recall": found.value.mean, "low": found.value.low, "high": found.value.high, "among": found.among}
    elif known is None and source.earlier is not None and there is not None and source.earlier.space == about.space:
        known = there.measured.get("narrowed")  # what was copied had lost it before
    counts.untold = known is None and counts.rows > 1
    return about if known is None else replace(about, measured={**about.measured, "narrowed": known})


def _measured(about: About, store: Store, counts: Counts) -> About:
    """With what the form costs, if it was never measured or much has changed since."""
    if about.form.kind not in ("int8", "binary") or counts.rows < 2:
        return about
    changed = counts.added + counts.updated + counts.removed + about.measured.get("changed", 0)
    if "rows" in about.measured and changed <= STALE * about.measured["rows"]:
        return replace(about, measured={**about.measured, "changed": changed})
    vectors = store.vectors([entry.id for entry in store.rows()])
    counts.recall = found = enough(vectors, Form(about.form.kind), TARGET, k=K)
    told = {"rows": counts.rows, "recall": found.value.mean, "low": found.value.low, "high": found.value.high, "changed": 0}
    return replace(about, form=found.form, measured={**about.measured, **told})


def _swapped(encoder: Encoder | None, out: Path, about: About, wanted: Wanted, file: Path) -> About:
    """Put a rebuilt index in the place of the old one, whose table stays: it may still be open to readers.

    Whatever a kill interrupts, the old index or the new one is there whole, and what was not dropped is dropped next time.
    Without an encoder the canaries stay those of the old index, of which the vectors are.
    """
    old = _there(out, Wanted(rebuild=True))
    if old is not None:
        about = replace(about, before=((old.store, old.name), *old.before))
        _note(out, old, wanted)
    if encoder is not None:
        canaries.keep(encoder, out)
    about.write(out / FILE)
    file.unlink()
    left = list(about.before[:1])
    for place, name in about.before[1:]:
        try:
            stores.drop(_address(place, wanted), out, name)
        except HardwonError as error:
            left.append((place, name))
            console().print(f"the old table {name} was left where it is: {error}", style="yellow", markup=False)
    about = replace(about, before=tuple(left))
    about.write(out / FILE)
    return about


def _note(out: Path, old: About, wanted: Wanted) -> None:
    """Write down which pictures the old index shows; without that, if it is out of reach, all of them are kept."""
    if not media.there(out):
        media.note(out, old.name, ())
        return
    with contextlib.suppress(HardwonError):
        store = stores.opened(_address(old.store, wanted), out, old.name, old.space, old.form)
        try:
            media.note(out, old.name, media.used(row.payload for row in store.rows()))
        finally:
            store.close()


def _address(place: str, wanted: Wanted) -> str:
    """Where a store is, with its password if that was told."""
    return wanted.store if wanted.store and stores.named(wanted.store) == stores.named(place) else place
