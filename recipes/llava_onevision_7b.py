"""LLaVA-OneVision-7B on eight GPUs of 80 GB, after LLaVE and UniME-V2.

    pip install 'hardwon[vlm,lora]'
    torchrun --nproc-per-node 8 recipes/llava_onevision_7b.py pairs.jsonl runs/llava7b
    torchrun --nproc-per-node 8 recipes/llava_onevision_7b.py pairs.jsonl runs/llava7b --steps 5     # a trial

The same program runs on one GPU without torchrun, more slowly: the batch is stated once, for all devices together, and the
gradient is that of one device on the whole batch. Interrupted, it goes on from its last checkpoint.

What the papers did: LLaVE trained projector and language model whole (learning rate 5e-6, cosine, warm-up 3 %, one pass over
662 thousand pairs, 16 accelerators of 64 GB with ZeRO-3), hardness 9; UniME-V2 trained LoRA of rank 16 with learning rate 2e-5,
batch 1,024, 2,000 steps on eight GPUs, temperature 0.02, pictures of 336 pixels. This is the latter with LLaVE's loss: whole
weights of 7B with AdamW do not fit a GPU of 80 GB unless they are sharded, which is not built yet.
"""

import argparse
from pathlib import Path

import hardwon
from hardwon import Embedder
from hardwon.distributed import World
from hardwon.losses import InfoNCE
from hardwon.models import LoRA
from hardwon.training import Memory, Settings

MODEL = "llava-hf/llava-onevision-qwen2-7b-ov-hf"
SETTINGS = Settings(
    batch_size=1024,
    learning_rate=2e-5,
    warmup=0.1,
    weight_decay=0.0,
    precision="bf16",
    memory=Memory(chunk_tokens=8192, keep_tokens=16_384, gradient_checkpointing=True),
)


def main() -> None:
    """Train and save."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("pairs", type=Path, help="as recipes/own.py describes them")
    parser.add_argument("out", type=Path, help="folder for checkpoints, metrics and the model")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--model", default=MODEL)
    asked = parser.parse_args()
    world = World.current()  # connects the processes and gives each its GPU
    embedder = Embedder.load(asked.model, lora=LoRA(rank=16, alpha=64.0), dtype="bfloat16", max_pixels=768 * 768)
    loss = InfoNCE(temperature=0.02, hardness=9.0, symmetric=True)
    pairs = hardwon.data.read(asked.pairs)
    hardwon.train(embedder, pairs, loss, steps=asked.steps, settings=SETTINGS, out=asked.out)
    if world.first:
        about = {"loss": repr(loss), "steps": asked.steps, "recipe": Path(__file__).name}
        embedder.save(asked.out / "model", about, merge=True)


if __name__ == "__main__":
    main()
