"""Pictures of results: training curves, interpolated weights, recall bars, grids, what a sentence
retrieves, and links of records.

Other rooms use the functions below, each of which writes one PNG file and returns its path, and from `canvas` the
colours and the empty figure. Needs the extra `plots`, except `draw_relevance`, which gives a picture.
"""

from hf_vse.plots.canvas import RECALLS
from hf_vse.plots.links import plot_links
from hf_vse.plots.overlay import draw_relevance
from hf_vse.plots.retrieval import plot_contact_sheet, plot_recall_bars, plot_retrieval_grid
from hf_vse.plots.runs import plot_grid, plot_interpolation, plot_training_curves

__all__ = [
    "RECALLS",
    "draw_relevance",
    "plot_contact_sheet",
    "plot_grid",
    "plot_interpolation",
    "plot_links",
    "plot_recall_bars",
    "plot_retrieval_grid",
    "plot_training_curves",
]
