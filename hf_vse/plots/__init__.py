"""Pictures where people would rather look than read: training curves, recall bars, and what a sentence retrieves.

Every function writes one PNG file and returns its path. Needs the extra `plots`.
"""

from hf_vse.plots.canvas import RECALLS
from hf_vse.plots.retrieval import plot_contact_sheet, plot_recall_bars, plot_retrieval_grid
from hf_vse.plots.runs import plot_grid, plot_training_curves

__all__ = [
    "RECALLS",
    "plot_contact_sheet",
    "plot_grid",
    "plot_recall_bars",
    "plot_retrieval_grid",
    "plot_training_curves",
]
