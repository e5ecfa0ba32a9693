"""What people look at: the report of a run, as one file that opens without a network."""

from hardwon.serve.report import write_report
from hardwon.serve.report_content import ReportContent

__all__ = ["ReportContent", "write_report"]
