"""Evaluation: benchmarks as data, one run that encodes everything once, reports that can be compared."""

from hardwon.evaluation.compare import Changed, Comparison, Difference, changed
from hardwon.evaluation.files import read_benchmark, write_benchmark
from hardwon.evaluation.fusion import Learned, learn_fusion, learn_weight
from hardwon.evaluation.held_out import benchmark_of
from hardwon.evaluation.leakage import Leak, Leaks, leakage
from hardwon.evaluation.load import load_benchmark
from hardwon.evaluation.references import references
from hardwon.evaluation.report import Report, comparison_table
from hardwon.evaluation.reranking import Reranking, evaluate_again, evaluate_reranking
from hardwon.evaluation.result import GROUPS, TaskResult
from hardwon.evaluation.robustness import Robustness, order_robustness
from hardwon.evaluation.run import evaluate
from hardwon.evaluation.sample import cost_of_sample, sampled
from hardwon.evaluation.task import Benchmark, Missing, Task

__all__ = [
    "GROUPS",
    "Benchmark",
    "Changed",
    "Comparison",
    "Difference",
    "Leak",
    "Leaks",
    "Learned",
    "Missing",
    "Report",
    "Reranking",
    "Robustness",
    "Task",
    "TaskResult",
    "benchmark_of",
    "changed",
    "comparison_table",
    "cost_of_sample",
    "evaluate",
    "evaluate_again",
    "evaluate_reranking",
    "leakage",
    "learn_fusion",
    "learn_weight",
    "load_benchmark",
    "order_robustness",
    "read_benchmark",
    "references",
    "sampled",
    "write_benchmark",
]
