"""The page of the metric: three lists as JSON, and the numbers."""

import json
from pathlib import Path

import evaluate
import gradio as gr

HERE = Path(__file__).parent
EXAMPLE = {
    "image_embeds": "[[1, 0], [0, 1]]",
    "text_embeds": "[[0.8, 0.6], [0.6, 0.8], [0.8, 0.6]]",
    "text_to_image": "[0, 1, 1]",
}
metric = evaluate.load(str(HERE / "cross_modal_recall.py"))


def compute_recalls(image_embeds: str, text_embeds: str, text_to_image: str) -> dict[str, float]:
    try:
        lists = [json.loads(text) for text in (image_embeds, text_embeds, text_to_image)]
        return metric.compute(image_embeds=lists[0], text_embeds=lists[1], text_to_image=lists[2])
    except (ValueError, TypeError) as error:
        raise gr.Error(str(error)) from error


page = gr.Interface(
    compute_recalls,
    [gr.Textbox(value, label=name) for name, value in EXAMPLE.items()],
    gr.JSON(label="recall"),
    title="Cross-modal recall",
    article=(HERE / "README.md").read_text(encoding="utf-8").partition("---\n\n")[2],
)

if __name__ == "__main__":
    page.launch()
