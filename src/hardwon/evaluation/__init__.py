"""Evaluation: benchmarks as data, one run that encodes everything once, reports that can be compared."""

from hardwon.evaluation.compare import Comparison
from hardwon.evaluation.files import read_benchmark, write_benchmark
from hardwon.evaluation.fusion import Learned, learn_weight
from hardwon.evaluation.load import load_benchmark
from hardwon.evaluation.references import references
from hardwon.evaluation.report import Report, comparison_table
from hardwon.evaluation.result import GROUPS
from hardwon.evaluation.run import evaluate
from hardwon.evaluation.task import Benchmark, Missing, Task

__all__ = [
    "GROUPS",
    "Benchmark",
    "Comparison",
    "Learned",
    "Missing",
    "Report",
    "Task",
    "comparison_table",
    "evaluate",
    "learn_weight",
    "load_benchmark",
    "read_benchmark",
    "references",
    "write_benchmark",
]
