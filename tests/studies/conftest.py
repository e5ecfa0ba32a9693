"""A study of coloured shapes: real pictures, a tiny tower and a tiny text model with random weights."""

from dataclasses import replace

import pytest
import tiny


def pairs_of(pictures):
    """Four kinds of pairs of the demo's names, about shapes."""
    from hardwon.items import Candidate, Example, Item

    made = []
    names = list(pictures)
    for n, (caption, path) in enumerate(pictures.items()):
        colour, shape = caption.split()
        picture, text = Item(images=(path,)), Item(text=caption)
        other = next(name for name in (*names[n + 1 :], *names) if name.endswith(shape) and name != caption)
        rows = (
            (Item(text=caption, instruction="Find it."), picture, "text_to_image"),
            (Item(images=(path,), instruction="Name it."), text, "image_to_text"),
            (Item(images=(path,), instruction="Which colour?"), Item(text=colour), "category"),
            (Item(f"as {other.split()[0]}", (path,), "Change it."), Item(images=(pictures[other],)), "composed"),
        )
        made += [Example(query, (Candidate(gold, origin="gold"),), source) for query, gold, source in rows]
    return made


@pytest.fixture(scope="session")
def studied(tmp_path_factory, tiny_vlm):
    """Folder of a study whose material is there."""
    from hardwon.evaluation import benchmark_of, write_benchmark
    from hardwon.items import write_examples
    from hardwon.models import Embedder
    from studies.features import items_of, look
    from studies.material import seal
    from studies.run import material_of
    from studies.suites import tiny as suite

    root = tmp_path_factory.mktemp("study")
    folder = root / material_of(suite())
    pictures = tiny.draw_all(folder / "data" / "pictures")
    examples = pairs_of(pictures)
    train, rest = examples[: 4 * 14], examples[4 * 14 :]
    for name, rows in (("train", train), ("val", rest)):
        write_examples(folder / "data" / f"{name}.jsonl", rows)
    test = benchmark_of(rest, "shapes")
    tasks = tuple(replace(task, name=task.name + ("_far" if n else "")) for n, task in enumerate(test.tasks))
    write_benchmark(replace(test, tasks=tasks), folder / "data" / "mmeb-small")
    model = Embedder.load(tiny_vlm, freeze=("vision",))
    model.body.settle_vision()
    look(model, items_of(examples), items_of(train)).save(folder)
    seal(folder, suite().scale.size)
    return root


@pytest.fixture(scope="session")
def material(studied):
    """What the trainings of a study share."""
    from studies.material import Material

    return Material.load(next(studied.glob("material-*")))
