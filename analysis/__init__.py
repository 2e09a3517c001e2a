"""Analysis of runs: measurements as pandas frames, tables beside the published ones, plots.

Examples
--------
>>> rows = load("results/*")                  # every measurement, one tidy frame
>>> themis_table1(["results/seed0", "results/seed1"])
>>> plot("results/seed0")                     # results/seed0/plots/*.png
"""

from pudica.analysis.comparison import compare
from pudica.analysis.dlmt import dlmt_accuracy, dlmt_breaks, dlmt_measures
from pudica.analysis.drawing import figures, plot
from pudica.analysis.export import build_named_table, export, list_tables
from pudica.analysis.facemix import (
    facemix_accuracy,
    facemix_attacks,
    facemix_attributes,
    facemix_reconstructions,
    facemix_trade_off,
    facemix_transmission,
)
from pudica.analysis.frontiers import attack_cells, frontier
from pudica.analysis.page import publish
from pudica.analysis.reporting import report
from pudica.analysis.runs import describe, find, load
from pudica.analysis.split import split_accuracy, split_costs
from pudica.analysis.spread import join_intervals
from pudica.analysis.summary import brief, tables
from pudica.analysis.themis import (
    themis_leaderboard,
    themis_protection,
    themis_table1,
    themis_table2,
)

__all__ = [
    "attack_cells",
    "brief",
    "build_named_table",
    "compare",
    "describe",
    "dlmt_accuracy",
    "dlmt_breaks",
    "dlmt_measures",
    "export",
    "facemix_accuracy",
    "facemix_attacks",
    "facemix_attributes",
    "facemix_reconstructions",
    "facemix_trade_off",
    "facemix_transmission",
    "figures",
    "find",
    "frontier",
    "join_intervals",
    "list_tables",
    "load",
    "plot",
    "publish",
    "report",
    "split_accuracy",
    "split_costs",
    "tables",
    "themis_leaderboard",
    "themis_protection",
    "themis_table1",
    "themis_table2",
]
