"""G9: folders that would run code if anything in them were believed. What they would do is write a canary; there is none.

G2: paths that would lead out of the data root.
"""

import json
import pickle
import shutil
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import vlms
from PIL import Image

from hardwon.data import read
from hardwon.errors import BadRows, HardwonError
from hardwon.items import Item
from hardwon.mining.judgements import JudgementStore
from hardwon.models import CachedEncoder, Embedder, Judge, Reranker
from hardwon.search import Index
from hardwon.shards import Job
from hardwon.spread import tasks
from hardwon.store import Store


class Bomb:
    """Whoever unpickles it writes the canary."""

    def __init__(self, canary):
        self.canary = str(canary)

    def __reduce__(self):
        return exec, (code(self.canary),)


def code(canary):
    return f"import pathlib; pathlib.Path({str(canary)!r}).touch()\n"


def change(file, **fields):
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def weights_as(name, *, keep=False, plain=False):
    """Weights that are a pickle, alone or beside those that are not."""

    def plant(folder, canary):
        target = folder / name
        if not keep:
            for file in folder.rglob("*.safetensors"):
                file.unlink()
        if plain:
            target.write_bytes(pickle.dumps(Bomb(canary)))
        else:
            torch.save({"embeddings.weight": Bomb(canary)}, target)

    return plant


def auto_map(file, name, module="modeling_evil"):
    def plant(folder, canary):
        (folder / f"{module}.py").write_text(code(canary) + f"class {name}:\n    pass\n")
        change(
            folder / file, auto_map={name: f"{module}.Evil", "AutoModel": f"{module}.{name}", "AutoConfig": f"{module}.{name}"}
        )

    return plant


def unknown_type(folder, canary):
    auto_map("config.json", "AutoModel")(folder, canary)
    change(folder / "config.json", model_type="evil", architectures=["Evil"])


def module_of(kind, path=""):
    def plant(folder, canary):
        (folder / "evil.py").write_text(code(canary) + "class Evil:\n    pass\n")
        rows = json.loads((folder / "modules.json").read_text())
        rows.append({"idx": len(rows), "name": "evil", "path": path, "type": kind})
        (folder / "modules.json").write_text(json.dumps(rows))

    return plant


def jinja(text):
    def plant(folder, canary):
        (folder / "chat_template.jinja").write_text(text.replace("CANARY", str(canary)))

    return plant


def adapter(folder, canary, **more):
    base = folder.parent / "base"
    shutil.copytree(folder, base)
    for file in folder.iterdir():
        shutil.rmtree(file) if file.is_dir() else file.unlink()
    told = {"peft_type": "LORA", "base_model_name_or_path": str(base), "r": 2, "target_modules": ["query"], **more}
    (folder / "adapter_config.json").write_text(json.dumps(told))
    torch.save({"a": Bomb(canary)}, folder / "adapter_model.bin")
    (folder / "evil.py").write_text(code(canary))


def adapter_of_evil_base(folder, canary):
    adapter(folder, canary)
    weights_as("pytorch_model.bin")(folder.parent / "base", canary)


def adapter_that_imports(folder, canary):
    adapter(folder, canary, auto_mapping={"parent_library": "evil", "base_model_class": "Evil"})


def no_modules(plant):
    def planted(folder, canary):
        (folder / "modules.json").unlink()
        plant(folder, canary)

    return planted


GETTING_OUT = (
    "{{ ''.__class__.__mro__[1].__subclasses__() }}{{ cycler.__init__.__globals__.os.system('touch CANARY') }}",
    "{{ self._TemplateReference__context.cycler.__init__.__globals__.os.popen('touch CANARY').read() }}",
    "{{ messages.__class__.__base__.__subclasses__()[140].__init__.__globals__['sys'].modules['os'].system('touch CANARY') }}",
    "{% for c in [].__class__.__base__.__subclasses__() %}{{ c('touch CANARY', shell=True) }}{% endfor %}",
    "{{ raise_exception.__globals__['__builtins__']['open']('CANARY', 'w') }}",
)

# Each is planted into a copy of a model that is fine, and then loaded and used as an embedder, and as a reranker.
MODELS = {
    "weights in a pickle": weights_as("pytorch_model.bin"),
    "weights in a bare pickle": weights_as("pytorch_model.bin", plain=True),
    "weights in a pickle, no modules": no_modules(weights_as("pytorch_model.bin")),
    "a pickle beside safetensors": weights_as("pytorch_model.bin", keep=True),
    "a training state": weights_as("training_args.bin", keep=True),
    "model.pt": weights_as("model.pt"),
    "model.ckpt": weights_as("model.ckpt", plain=True),
    "model.pkl": weights_as("model.pkl", plain=True),
    "model.joblib": weights_as("model.joblib", plain=True),
    "safetensors that are a pickle": weights_as("model.safetensors", plain=True),
    "auto_map of the config": auto_map("config.json", "AutoModel"),
    "auto_map of the config, no modules": no_modules(auto_map("config.json", "AutoModel")),
    "auto_map of the tokenizer": auto_map("tokenizer_config.json", "AutoTokenizer"),
    "an architecture of its own": unknown_type,
    "an architecture of its own, no modules": no_modules(unknown_type),
    "a module of the folder": module_of("evil.Evil"),
    "a module of Python": module_of("subprocess.Popen"),
    "a module of another package": module_of("pickle.Unpickler"),
    "a module that lies elsewhere": module_of("sentence_transformers.models.Dense", "../../elsewhere"),
    "an adapter in a pickle": adapter,
    "an adapter of an evil base": adapter_of_evil_base,
    "an adapter that imports": adapter_that_imports,
}


@pytest.fixture
def canary(tmp_path):
    return tmp_path / "canary"


@pytest.fixture(scope="module")
def fine(tiny_text):
    """A model whose modules are named."""
    assert (tiny_text / "modules.json").exists()
    return tiny_text


def test_the_bomb_goes_off_when_it_is_read(canary):
    pickle.loads(pickle.dumps(Bomb(canary)))
    assert canary.exists()


@pytest.mark.parametrize("name", MODELS)
def test_models(fine, tmp_path, canary, name, monkeypatch):
    folder = tmp_path / "model"
    shutil.copytree(fine, folder)
    MODELS[name](folder, canary)
    monkeypatch.chdir(folder)  # so that modules of the folder could be imported, too
    monkeypatch.syspath_prepend(str(folder))
    loaded = []
    for load in (Embedder.load, Reranker.load):
        try:
            model = load(folder, device="cpu")
            loaded.append(load)
            if load is Embedder.load:
                model.encode([Item(text="a red bar")])
        except HardwonError as error:
            assert str(folder.parent) in str(error)  # says which
    assert not canary.exists()
    assert "evil" not in sys.modules and "modeling_evil" not in sys.modules
    if "beside" in name or name == "a training state":
        assert loaded  # what is not read does no harm


@pytest.mark.parametrize("template", GETTING_OUT)
def test_templates(tmp_path, canary, template, tmp_path_factory):
    folder = vlms.bare(vlms.DECODERS["qwen2-vl"](tmp_path / "vlm"))
    jinja(template)(folder, canary)
    with pytest.raises(Exception):  # noqa: B017  (jinja's own SecurityError, or a refusal of ours)
        Judge.load(folder, device="cpu").judge([(Item(text="a"), Item(text="b"))])
    assert not canary.exists()


class TestOtherFiles:
    def test_stores(self, tmp_path, canary):
        bomb = pickle.dumps(Bomb(canary))
        for folder in (tmp_path / "vectors-fake-1", JudgementStore(tmp_path, "judge").folder):
            folder.mkdir(exist_ok=True)
            for name in ("a.json", "a.safetensors", "b.parquet", "c.npy", "manifest.json"):
                (folder / name).write_bytes(bomb)
        assert Store(tmp_path / "vectors-fake-1").rows == {}
        assert len(JudgementStore(tmp_path, "judge")) == 0
        assert not canary.exists()

    @pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.parquet", "a.npy", "a.npz", "a.pkl", "a.yaml", "a.pt"])
    def test_data(self, tmp_path, canary, name):
        (tmp_path / name).write_bytes(pickle.dumps(Bomb(canary)))
        if name == "a.npy":
            np.save(tmp_path / name, np.array([Bomb(canary)], dtype=object), allow_pickle=True)
        if name == "a.yaml":
            (tmp_path / name).write_text(f"!!python/object/apply:os.system ['touch {canary}']")
        with pytest.raises(HardwonError):
            read(tmp_path / name)
        assert not canary.exists()

    def test_an_index(self, tmp_path, canary, fine):
        encoder = CachedEncoder(Embedder.load(fine, device="cpu"), None)
        Index.build(encoder, [Item(text="a")], progress="").save(tmp_path / "index")
        for name in ("vectors.safetensors", "items.jsonl", "manifest.json"):
            shutil.copytree(tmp_path / "index", tmp_path / name)
            (tmp_path / name / name).write_bytes(pickle.dumps(Bomb(canary)))
            with pytest.raises(HardwonError):
                Index.load(tmp_path / name, encoder)
        assert not canary.exists()

    def test_work(self, tmp_path, canary, fine):
        shutil.copytree(fine, tmp_path / "model")
        weights_as("pytorch_model.bin")(tmp_path / "model", canary)
        told = [{"kind": "os.system"}, {"kind": "embed", "model": str(tmp_path / "model"), "fingerprint": "x"}]
        for n, task in enumerate(told):
            Job.create(tmp_path / str(n), task).put([f"touch {canary}"])
            with pytest.raises(HardwonError):
                tasks.help_with(tmp_path / str(n))
        assert not canary.exists()

    def test_an_archive_is_unpacked_into_its_folder_only(self, tmp_path):
        """As `hardwon.data.assets` unpacks; the rest is asked in tests/data/test_assets.py."""
        with zipfile.ZipFile(tmp_path / "a.whl", "w") as archive:
            for name in ("../evil", "/tmp/evil-of-hardwon", "a/../../evil", "..\\evil"):
                archive.writestr(name, "x")
        with zipfile.ZipFile(tmp_path / "a.whl") as archive:
            for member in archive.infolist():
                archive.extract(member, tmp_path / "inside")
        assert not [p for p in tmp_path.rglob("*evil*") if not p.is_relative_to(tmp_path / "inside")]
        assert not Path("/tmp/evil-of-hardwon").exists()


def payloads(root, outside):
    """Sixty ways to name a picture outside the data root; links among them."""
    (root / "sub").mkdir(parents=True)
    secret = outside / "secret.png"
    for n, (name, target) in enumerate(
        [("link.png", secret), ("folder", outside), ("up", root.parent), ("sub/link.png", secret)]
    ):
        (root / name).symlink_to(target, target_is_directory=n in (1, 2))
    (root / "chain.png").symlink_to(root / "link.png")
    (root / "round.png").symlink_to(root / "round.png")
    (root / "relative.png").symlink_to(Path("../outside/secret.png"))
    up = [f"{'../' * n}outside/secret.png" for n in range(1, 8)] + [f"sub/{'../' * n}outside/secret.png" for n in range(2, 6)]
    links = ["link.png", "folder/secret.png", "up/outside/secret.png", "sub/link.png", "chain.png", "round.png", "relative.png"]
    whole = [
        str(secret),
        f"//{secret}",
        f"/{secret}",
        f"/./{secret}",
        f"/proc/self/root{secret}",
        f"/proc/self/cwd/../..{secret}",
    ]
    system = [
        "/etc/passwd",
        "/proc/self/environ",
        "/proc/self/mem",
        "/dev/zero",
        "/dev/stdin",
        "/proc/self/fd/0",
        "~/secret.png",
    ]
    urls = [f"{scheme}{secret}" for scheme in ("file://", "file:", "FILE://", "file://localhost", "zip://", "jar:file://")]
    urls += ["http://127.0.0.1/a.png", "https://127.0.0.1/a.png", "ftp://127.0.0.1/a", "data:image/png;base64,iVBORw0KGgo="]
    coded = [
        "%2e%2e/outside/secret.png",
        "..%2foutside%2fsecret.png",
        "%2e%2e%2foutside/secret.png",
        "..%c0%afoutside/secret.png",
    ]
    coded += [
        "..%252foutside%252fsecret.png",
        "．．/outside/secret.png",
        "..∕outside∕secret.png",
        "\\\\host\\share\\secret.png",
    ]
    coded += ["..\\outside\\secret.png", "C:\\secret.png", "....//outside/secret.png", "..;/outside/secret.png"]
    odd = [
        f"{secret}\x00.png",
        "a.png\x00/../../outside/secret.png",
        "\x00",
        ".",
        "..",
        "./",
        "sub/..",
        " ../outside/secret.png",
    ]
    odd += ["a" * 5000, "a/" * 3000 + "b", "secret.zip!/secret.png", "$HOME/secret.png"]
    return [*up, *links, *whole, *system, *urls, *coded, *odd]


def test_no_path_leads_out_of_the_root(tmp_path):
    root, outside = tmp_path / "root", tmp_path / "outside"
    outside.mkdir()
    Image.new("RGB", (8, 8), "red").save(outside / "secret.png")
    tried = payloads(root, outside)
    assert len(tried) >= 60
    opened = watch_opening()
    for field in ("query_image", "positive_video"):
        rows = [{"query": "a", "positive": "b", field: path if field == "query_image" else [path]} for path in tried]
        (root / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        with opened() as seen, pytest.raises(BadRows) as refused:
            read(root / "data.jsonl")
        assert len(refused.value.rows) == len(tried)
        assert [path for path in seen if str(outside) in path or path.startswith(("/etc", "/proc", "/dev"))] == []
        assert not [row for row in refused.value.rows if "secret" in row.reason and "red" in row.reason]


def watch_opening():
    """What is opened while one watches, by its real path."""
    from contextlib import contextmanager

    seen, on = [], []

    def hook(event, args):
        if event == "open" and on and isinstance(args[0], (str, bytes)):
            on.clear()  # finding the real path opens nothing, but one does not want to find out
            seen.append(str(Path(args[0] if isinstance(args[0], str) else args[0].decode(errors="replace")).resolve()))
            on.append(1)

    sys.addaudithook(hook)

    @contextmanager
    def opened():
        seen.clear()
        on.append(1)
        try:
            yield seen
        finally:
            on.clear()

    return opened
