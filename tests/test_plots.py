import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from hf_vse.plots import (
    RECALLS,
    draw_relevance,
    plot_recall_bars,
    plot_retrieval_grid,
    plot_training_curves,
    retrieval,
    runs,
)

QUERIES = ["A small red star on a white background.", "It costs $5 or $6, on the left of a blue circle."]


def training_log(epochs: int = 4) -> list[dict[str, float]]:
    log = []
    for step in range(10, 40 * epochs + 1, 10):
        log.append({"loss": 8 / step**0.5, "learning_rate": 1e-3, "step": step, "epoch": step / 40})
        if step % 40 == 0:
            recalls = {f"eval_{name}": (number + 1) * 3.0 * step / 40 for number, name in enumerate(RECALLS)}
            log.append(recalls | {"eval_rsum": sum(recalls.values()), "step": step, "epoch": step / 40})
    return [*log, {"train_runtime": 3.0, "train_loss": 1.0, "step": 160, "epoch": 4.0}]


def recalls(scale: float = 1.0) -> dict[str, float]:
    return {name: scale * value for name, value in zip(RECALLS, (20, 50, 70, 15, 45, 65), strict=True)} | {"rsum": 265}


def noise(rows: int, columns: int, size: int = 64) -> list[list[Image.Image]]:
    rng = np.random.default_rng(0)
    return [
        [Image.fromarray(rng.integers(0, 256, (size, size + 20, 3), dtype=np.uint8)) for _ in range(columns)]
        for _ in range(rows)
    ]


def opened(path, largest: int = 400_000) -> np.ndarray:
    assert 2_000 < path.stat().st_size < largest
    with Image.open(path) as image:
        assert image.format == "PNG"
        pixels = np.asarray(image.convert("RGB"))
    assert pixels.std() > 5 and tuple(pixels[0, 0]) == (255, 255, 255)
    return pixels


def test_training_curves_are_written(tmp_path):
    path = plot_training_curves(training_log(), tmp_path / "new" / "folder" / "curves.png")
    assert path == tmp_path / "new" / "folder" / "curves.png"
    height, width, _ = opened(path).shape
    assert width > 1.8 * height > 600


def test_training_curves_need_only_what_was_logged(tmp_path):
    log = training_log()
    only_loss = [entry for entry in log if "loss" in entry]
    only_recalls = [entry for entry in log if "eval_rsum" in entry]
    both = opened(plot_training_curves(log, tmp_path / "both.png")).shape[1]
    assert opened(plot_training_curves(only_loss, tmp_path / "loss.png")).shape[1] == both // 2
    assert opened(plot_training_curves(only_recalls, str(tmp_path / "recalls.png"))).shape[1] == both // 2
    opened(plot_training_curves(log[:1], tmp_path / "one.png"))
    opened(plot_training_curves([{"loss": 1.0}, {"loss": 0.5}], tmp_path / "bare.png"))


def test_training_curves_mark_the_best_evaluation(tmp_path, monkeypatch):
    log = training_log(3)
    log[-2]["eval_rsum"] = 1.0  # the last epoch is the worst now
    figures = []
    monkeypatch.setattr(runs, "save", lambda figure, path: figures.append(figure) or path)
    plot_training_curves(log, tmp_path / "curves.png")
    _, axes = figures[0].axes
    assert axes.get_title(loc="left") == "Validation recall, best rsum 126.0 at epoch 2"
    assert len(axes.lines) == len(RECALLS) + 1
    assert list(axes.lines[-1].get_xdata()) == [2, 2]


@pytest.mark.parametrize("log", [[], [{"train_loss": 1.0, "step": 3}]])
def test_training_curves_refuse_an_empty_log(log, tmp_path):
    with pytest.raises(ValueError, match=f"log_history has {len(log)} entries, none with 'loss' or 'eval_i2t_r1'"):
        plot_training_curves(log, tmp_path / "curves.png")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("models", [1, 2, 5])
def test_recall_bars_are_written(models, tmp_path):
    results = {f"model_{number} $x$": recalls(1 - number / 10) for number in range(models)}
    opened(plot_recall_bars(results, tmp_path / "bars.png", chance={"i2t_r1": 0.2, "t2i_r10": 2.0}))
    opened(plot_recall_bars(results, tmp_path / "plain.png"))


def test_recall_bars_stand_as_high_as_the_recalls(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(retrieval, "save", lambda figure, path: figures.append(figure) or path)
    results = {"a": recalls(), "b": recalls(0.5)}
    plot_recall_bars(results, tmp_path / "bars.png", chance=recalls(0.1))
    (axes,) = figures[0].axes
    heights = [[bar.get_height() for bar in bars] for bars in axes.containers]
    assert heights == [[values[name] for name in RECALLS] for values in results.values()]
    assert {"20.0", "7.5"} <= {text.get_text() for text in axes.texts}
    assert {text.get_text() for text in axes.get_legend().get_texts()} == {"a", "b", "chance"}


def test_recall_bars_refuse_what_is_missing(tmp_path):
    with pytest.raises(ValueError, match="results is empty"):
        plot_recall_bars({}, tmp_path / "bars.png")
    partial = {name: 1.0 for name in RECALLS if name != "t2i_r5"}
    with pytest.raises(ValueError, match=r"results\['mine'\] lacks t2i_r5"):
        plot_recall_bars({"mine": partial}, tmp_path / "bars.png")


def test_retrieval_grid_is_written(tmp_path):
    correct = [[False, True, False], [False] * 3]
    path = plot_retrieval_grid(QUERIES, noise(2, 3), correct, tmp_path / "grid.png", scores=[[0.9, 0.8, -0.1]] * 2)
    pixels = opened(path)
    green = (np.abs(pixels.astype(int) - [0, 158, 115]).max(-1) < 12).sum(1) > 80  # a side of a frame, not noise
    assert green[: len(green) // 2].any()
    assert not green[len(green) // 2 :].any()


def test_retrieval_grid_takes_rows_of_different_lengths(tmp_path):
    images = noise(2, 3)
    opened(plot_retrieval_grid(QUERIES, [images[0], images[1][:1]], [[True] * 3, [False]], tmp_path / "grid.png"))


def test_retrieval_grid_of_many_photographs_stays_small(tmp_path):
    pixels = opened(plot_retrieval_grid(["Noise."] * 5, noise(5, 6, 200), [[False] * 6] * 5, tmp_path / "grid.png"))
    assert pixels.shape[1] > 600


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"queries": []}, "queries has 0 sentences"),
        ({"images": [[], []], "correct": [[], []]}, "images nothing to show"),
        ({"images": noise(1, 2)}, "images has 1 rows for 2 queries"),
        ({"correct": [[True, False], [True]]}, r"correct\[1\] has 1 entries for 2 images"),
        ({"scores": [[0.1], [0.1, 0.2]]}, r"scores\[0\] has 1 entries for 2 images"),
    ],
)
def test_retrieval_grid_refuses_what_does_not_fit(changes, message, tmp_path):
    fitting = {"queries": QUERIES, "images": noise(2, 2), "correct": [[True, False]] * 2}
    with pytest.raises(ValueError, match=message):
        plot_retrieval_grid(**(fitting | changes), path=tmp_path / "grid.png")
    assert not list(tmp_path.iterdir())


def test_path_must_be_a_png(tmp_path):
    with pytest.raises(ValueError, match=r"curves.pdf' must end in .png"):
        plot_training_curves(training_log(), tmp_path / "curves.pdf")


def test_missing_matplotlib_names_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r'pip install "hf_vse\[plots\]"'):
        plot_training_curves(training_log(), tmp_path / "curves.png")


def test_import_needs_no_matplotlib_and_drawing_no_pyplot(tmp_path):
    code = (
        "import sys; from hf_vse.plots import plot_training_curves; assert 'matplotlib' not in sys.modules; "
        "plot_training_curves([{'loss': 1.0, 'step': 1}], sys.argv[1]); assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "curves.png")], check=True)


def test_light_falls_on_the_relevant_cell_where_it_lies_in_the_photograph():
    image = Image.new("RGB", (200, 100), (200, 200, 200))
    cells = np.zeros((2, 2), dtype=np.float32)
    cells[1, 0] = 1
    drawn = np.asarray(draw_relevance(image, cells, (50, 0, 150, 100), side=100)).astype(int)
    assert drawn.shape == (50, 100, 3)
    assert drawn[45, 30].tolist() == [200, 200, 200]  # the lower left cell of the middle, near its far corner
    assert (drawn[:, :24] == 50).all() and (drawn[:20, 76:] == 50).all()  # what the model does not see
    assert drawn[5, 70].max() == 50 and drawn[25, 40].tolist() == [230, 159, 0]
