"""One script per claim; results are kept beside it as `<theme>_<hardware>_<date>.md`."""
