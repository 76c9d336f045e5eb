import PIL.Image
import pytest

from hf_vse.plots import RECALLS, plot_recall_bars, plot_retrieval_grid, plot_training_curves

METRICS = {recall: 10.0 * place + 5 for place, recall in enumerate(RECALLS)} | {"rsum": 180.0}
LOG = [{"loss": 5 / step, "step": step, "epoch": step / 10} for step in range(1, 31)] + [
    {f"eval_{name}": value / epoch for name, value in METRICS.items()} | {"epoch": epoch, "step": 10 * epoch}
    for epoch in (1, 2, 3)
]


def check_picture(path, width, height):
    assert path.stat().st_size < 400_000
    with PIL.Image.open(path) as image:
        assert image.format == "PNG" and image.width >= width and image.height >= height
        assert len(set(image.convert("L").resize((64, 64)).getdata())) > 5


def test_training_curves_with_and_without_evaluations(tmp_path):
    check_picture(plot_training_curves(LOG, tmp_path / "new" / "curves.png"), 1000, 400)
    check_picture(plot_training_curves(LOG[:30], tmp_path / "loss.png"), 500, 400)
    with pytest.raises(ValueError, match="log_history holds no loss"):
        plot_training_curves(LOG[30:], tmp_path / "none.png")


def test_recall_bars_of_two_models(tmp_path):
    path = plot_recall_bars({"nce": METRICS, "hardnce": METRICS}, tmp_path / "bars.png", chance=METRICS)
    check_picture(path, 700, 400)
    with pytest.raises(ValueError, match="results is empty"):
        plot_recall_bars({}, tmp_path / "none.png")


def test_retrieval_grid(tmp_path):
    pictures = [[PIL.Image.new("RGB", (40, 30), (40 * i, 90, 200)) for i in range(4)] for _ in range(3)]
    correct = [[False, True, False, False]] * 3
    sentence = "a rather long sentence about a dog that runs over wet grass after a ball"
    path = plot_retrieval_grid([sentence] * 3, pictures, correct, tmp_path / "grid.png", scores=[[0.5] * 4] * 3)
    check_picture(path, 600, 400)
    with pytest.raises(ValueError, match="nothing to draw"):
        plot_retrieval_grid([], [], [], tmp_path / "none.png")
