"""Evaluation: benchmarks as data, one run that encodes everything once, reports that can be compared."""

from hardwon.evaluation.compare import Comparison
from hardwon.evaluation.files import read_benchmark, write_benchmark
from hardwon.evaluation.fusion import Learned, learn_fusion, learn_weight
from hardwon.evaluation.held_out import benchmark_of
from hardwon.evaluation.report import Report, comparison_table
from hardwon.evaluation.reranking import Reranking, evaluate_reranking
from hardwon.evaluation.result import GROUPS
from hardwon.evaluation.robustness import Robustness, order_robustness
from hardwon.evaluation.run import evaluate
from hardwon.evaluation.task import Benchmark, Task

__all__ = [
    "GROUPS",
    "Benchmark",
    "Comparison",
    "Learned",
    "Report",
    "Reranking",
    "Robustness",
    "Task",
    "benchmark_of",
    "comparison_table",
    "evaluate",
    "evaluate_reranking",
    "learn_fusion",
    "learn_weight",
    "order_robustness",
    "read_benchmark",
    "write_benchmark",
]
