"""Evaluation: benchmarks as data, one run that encodes everything once, reports that can be compared."""

from hardwon.evaluation.compare import Comparison
from hardwon.evaluation.files import read_benchmark, write_benchmark
from hardwon.evaluation.fusion import Learned, learn_weight
from hardwon.evaluation.report import Report, comparison_table
from hardwon.evaluation.result import GROUPS
from hardwon.evaluation.run import evaluate
from hardwon.evaluation.sample import cost_of_sample, sampled
from hardwon.evaluation.task import Benchmark, Task

__all__ = [
    "GROUPS",
    "Benchmark",
    "Comparison",
    "Learned",
    "Report",
    "Task",
    "comparison_table",
    "cost_of_sample",
    "evaluate",
    "learn_weight",
    "read_benchmark",
    "sampled",
    "write_benchmark",
]
