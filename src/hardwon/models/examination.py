"""What the doctor finds: one row per check, and what to do about a row that has not passed."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from hardwon.models.facts import Facts

READ, FINITE, ONE, APART = "every probe is read", "all vectors are finite", "all have length 1", "different probes differ"
TOGETHER, REVERSED, ENCODED = "in batches", "in batches from the last", "as encode() batches them"
FILLED = "filled up on the other side"
PLAIN, PLAIN_TOGETHER = "by SentenceTransformer(path)", "the same in batches"
COPY, PLAIN_COPY = "saved: by hardwon", "saved: by SentenceTransformer"
COARSE = "computed in bfloat16"
KEPT = "as when it was saved"
ORDER = (READ, FINITE, ONE, APART, TOGETHER, REVERSED, ENCODED, FILLED, PLAIN, PLAIN_TOGETHER, COPY, PLAIN_COPY, KEPT, COARSE)

_PADDING = (
    "A vector depends on what shares its batch: padding is seen. `model_input_names` in tokenizer_config.json must name "
    "attention_mask, pooling must leave padding out, and no layer may use statistics of the batch."
)
_SAVING = (
    "What was saved is not what was loaded: do not share copies before that is mended. Look for a module, prompt or setting "
    "that modules.json, config_sentence_transformers.json and sentence_bert_config.json do not keep."
)
ADVICE = {
    READ: "Processor and weights do not fit together: compare preprocessor_config.json and the tokenizer with the original's.",
    FINITE: "The weights are damaged or overflow: fetch the model again, or load it in float32 or bfloat16 instead of float16.",
    ONE: "Some vectors are zero: look at the last modules of modules.json.",
    APART: "The model tells these two apart no more than equal ones. Either its weights are random or damaged, or the wrong "
    "place is pooled: check pooling_mode in modules.json's pooling folder.",
    TOGETHER: _PADDING,
    REVERSED: _PADDING,
    ENCODED: _PADDING,
    FILLED: "Only the tokenizer's own padding_side gives right vectors: do not change it, also not where the model is served.",
    PLAIN: "hardwon and sentence-transformers show the model different tokens. Compare prompts and default_prompt_name in "
    "config_sentence_transformers.json, the chat template, and the maximum length; if they are in order, report it to hardwon.",
    PLAIN_TOGETHER: _PADDING,
    COPY: _SAVING,
    PLAIN_COPY: _SAVING,
    KEPT: "Since the model was saved its weights, its settings or a library changed, and its vectors with them. Encode what is "
    "in your indexes again, or go back to the versions that are named below.",
}


@dataclass(frozen=True)
class Check:
    """One row of an examination.

    Attributes:
        name: what was compared with the truth, or asked of it.
        probes: how many took part.
        largest: the largest difference of cosine; for the first four rows the number of failures, the largest distance
            from length 1, and the largest cosine of two different probes. Infinite where a vector could not be made.
        worst: the probe, or the two, with that.
        limit: the largest that passes; None: information only.
        remark: the error, where there was one.
    """

    name: str
    probes: int
    largest: float
    worst: str = ""
    limit: float | None = None
    remark: str = ""

    @property
    def passed(self) -> bool:
        """Whether it is within its limit; NaN is not."""
        return self.limit is None or self.largest <= self.limit

    @property
    def advice(self) -> str:
        """What to do when it has not passed."""
        return ADVICE.get(self.name, "")


@dataclass(frozen=True)
class Examination:
    """What the doctor found.

    Attributes:
        path: the model.
        rows: the checks, in the order in which they should be mended.
        facts: what the model is.
        notes: what was left out, and what people who load the model by other means should know.
    """

    path: str
    rows: tuple[Check, ...]
    facts: Facts
    notes: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether every row has passed."""
        return all(row.passed for row in self.rows)

    def to_json(self) -> dict[str, Any]:
        """JSON form; a number that is not finite is null."""
        rows = [asdict(row) | {"passed": row.passed} for row in self.rows]
        for row in rows:
            row["largest"] = row["largest"] if math.isfinite(row["largest"]) else None
        return {"path": self.path, "passed": self.passed, "rows": rows, "facts": asdict(self.facts), "notes": list(self.notes)}
