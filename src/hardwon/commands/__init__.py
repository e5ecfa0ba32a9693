"""The commands that need more than a few lines; `hardwon.cli` puts them together."""
