"""torchvision without its C++ operators: transformers must be importable all the same.

The wheel of torchvision on PyPI is compiled against the CUDA build of torch. Beside a CPU build its library cannot be loaded,
which torchvision itself tolerates: pictures are still resized and cropped, in plain torch. But while it is imported it
describes two operators of that library to torch, which raises "operator torchvision::nms does not exist" because nobody has
declared them, and everything that imports torchvision fails with it: transformers, sentence-transformers, every model.
Declaring the two first is enough. Nothing wrong can come of it: an operator that is called without an implementation raises,
and torchvision asks for its library before it calls one.
"""

import contextlib
import importlib.util
import sys
from pathlib import Path

MISSING = {
    "nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}


def declare_missing_operators() -> tuple[str, ...]:
    """Declare the operators that torchvision needs in order to be imported, where its library cannot be loaded.

    Nothing happens without torchvision, where its library works, where it is already imported, and at the second call.
    Importing this module calls it, which must happen before anything imports transformers.

    Returns:
        The names that were declared.
    """
    if "torchvision" in sys.modules or (spec := importlib.util.find_spec("torchvision")) is None or spec.origin is None:
        return ()
    import torch

    # Loading comes first, by the call that torchvision makes itself: a library that does load declares its own operators, and
    # ends the process if it finds them declared.
    for library in Path(spec.origin).parent.glob("_C.*"):
        with contextlib.suppress(OSError):
            torch.ops.load_library(str(library))
    declared = tuple(name for name in MISSING if not hasattr(torch.ops.torchvision, name))
    for name in declared:
        torch.library.define(f"torchvision::{name}", MISSING[name])
    return declared


declare_missing_operators()
