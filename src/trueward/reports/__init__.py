"""Reports: a run's summary as one offline HTML page and as a table in the terminal. No torch."""

from trueward.reports.page import render_report
from trueward.reports.summary import Figure, StageSummary, Summary, read_summary
from trueward.reports.table import stage_table

__all__ = ["Figure", "StageSummary", "Summary", "read_summary", "render_report", "stage_table"]
