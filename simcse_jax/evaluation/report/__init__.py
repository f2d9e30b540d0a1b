"""The results as one page that opens offline, and its pictures."""

from simcse_jax.evaluation.report.page import write_report

__all__ = ["write_report"]
