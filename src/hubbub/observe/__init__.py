"""What a person looks at: folds over a run's events.

    report.py    report.html, one file, plots inline
    plot.py      a curve over rounds as SVG

*Trust:* reads what is public or released already; a wrong picture misleads but reveals nothing.
"""

from hubbub.observe.report import write_report

__all__ = ["write_report"]
