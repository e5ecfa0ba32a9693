"""What we save loads in an environment where hardwon is not installed, and gives the same numbers."""

import os
import subprocess
import sys

import numpy as np

from hardwon.items import Item
from hardwon.models import Embedder, Reranker

SCRIPT = """
import sys
sys.modules["hardwon"] = None  # as if it were not installed
sys.modules["torchvision"] = None  # nor this: beside some builds of torch transformers cannot be imported with it
import numpy as np, torch
from PIL import Image
from sentence_transformers import CrossEncoder, SentenceTransformer
torch.set_num_threads(1)
folder, picture = sys.argv[1], Image.open(sys.argv[2]).convert("RGB")
seen = [{"text": "find it red square"}, {"image": picture}, {"image": picture, "text": "a"}, {"image": [picture, picture]}]
read = ["red square", "the circle is blue"]
made = {
    "vlm": SentenceTransformer(folder + "/vlm", device="cpu").encode(seen),
    "text": SentenceTransformer(folder + "/text", device="cpu").encode(read),
}
odds = torch.nn.Identity()
for name, pairs in (("seeing", [(seen[0], item) for item in seen[1:]]), ("reading", [tuple(read), tuple(read[::-1])])):
    model = CrossEncoder(folder + "/" + name, device="cpu")
    made[name], made[name + "-chance"] = model.predict(pairs, activation_fn=odds), model.predict(pairs)
assert [name for name in sys.modules if name.startswith("hardwon")] == ["hardwon"]
np.savez(folder + "/made.npz", **made)
"""


def test_saved_models_are_plain_sentence_transformers_models(vlm, text_model, pictures, tmp_path):
    seeing, reading = Reranker.start_from(vlm, layers=1), Reranker.start_from(text_model)
    for name, model in (("vlm", vlm), ("text", text_model), ("seeing", seeing), ("reading", reading)):
        model.save(tmp_path / name, {"note": name})
    picture = pictures["blue triangle"]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path), str(picture)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    made = np.load(tmp_path / "made.npz")

    seen = [Item(text="red square", instruction="find it"), Item(images=(picture,)), Item(text="a", images=(picture,))]
    seen.append(Item(images=(picture, picture)))
    read = [Item(text="red square"), Item(text="the circle is blue")]
    np.testing.assert_allclose(made["vlm"], vlm.encode(seen), atol=1e-6)
    np.testing.assert_allclose(made["text"], text_model.encode(read), atol=1e-6)
    for name, ours in (
        ("seeing", seeing.score(seen[0], seen[1:])),
        ("reading", reading.score_pairs([tuple(read), tuple(read[::-1])])),
    ):
        np.testing.assert_allclose(made[name].ravel(), ours, atol=1e-6)
        np.testing.assert_allclose(made[f"{name}-chance"].ravel(), 1 / (1 + np.exp(-ours)), atol=1e-6)
    # Read back by us as well, whatever wrote it.
    assert Embedder.load(tmp_path / "vlm", device="cpu").fingerprint == vlm.fingerprint
    assert Reranker.load(tmp_path / "seeing", device="cpu").fingerprint == seeing.fingerprint
