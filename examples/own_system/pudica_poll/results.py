"""What a person reads and looks at."""

from collections.abc import Iterator, Sequence

import pandas as pd
from matplotlib.figure import Figure

from pudica.analysis.runs import Run


def tables(runs: Sequence[Run]) -> dict[str, pd.DataFrame]:
    """Return the shares that each node's answers point to, per cent."""
    rows = [
        {"run": run.name, "node": row["node"], "share": 100 * row["value"]}
        for run in runs
        for row in run.frame.to_dict("records")
        if row["metric"] == "share"
    ]
    return {"Poll": pd.DataFrame(rows)}


def figures(run: Run) -> Iterator[tuple[str, Figure]]:
    """Yield a bar for each node."""
    table = tables([run])["Poll"]
    figure = Figure()
    figure.subplots().bar(table.node, table.share)
    yield "poll", figure
