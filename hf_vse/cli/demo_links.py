"""The place in the page of `hf-vse demo` in which a person judges links, the least certain first.

It imports modules of the page, so only the process of `demo_page` imports it.
"""

import html
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any, Literal

import gradio as gr
import numpy as np
from app import PRIVATE
from components import data_address, friendly
from limits import RefusedError
from page import Page
from photographs import thumbnail

from hf_vse.link.judging import Judgements, judged_file, proposed, questions, read_links
from hf_vse.link.labels import FEW, Judgement
from hf_vse.link.records import NAMES, Records
from hf_vse.link.run import Linkage

ORDERS = ("Least certain first", "At random")
FIELDS = 6  # of a record, beside its name and its sentences
SENTENCES = 4
LETTERS = 60  # of the value of a field
Answer = Literal["yes", "runner_up", "no", "unsure"]
BUTTONS: dict[Answer, str] = {
    "yes": "Same (y)",
    "runner_up": "Runner-up (r)",
    "no": "Different (n)",
    "unsure": "Unsure (u)",
}
# A key clicks the button of its answer, while the buttons are visible and nobody types.
KEYS = """() => document.addEventListener("keydown", event => {
  const button = {y: "yes", r: "runner_up", n: "no", u: "unsure", b: "back"}[event.key];
  const typing = event.target.closest("input:not([type=radio]), textarea") !== null;
  if (!button || typing || event.repeat || event.ctrlKey || event.metaKey || event.altKey) return;
  const found = document.getElementById("judge_" + button);
  if (found && found.offsetParent !== null && !found.disabled) found.click();
})"""
SAVE = """(name, text) => {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], {type: "text/csv"}));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}"""
Shown = tuple[int, str, str, Any]  # the asking row or -1, HTML of the progress and of the records, the second button


class Judging:
    """The questions about links, and what a person answers.

    Args:
        linkage: see `read_links`.
        judgements: kept in a file.
    """

    def __init__(self, linkage: Linkage, judgements: Judgements):
        self.linkage = linkage
        self.judgements = judgements
        first = questions(linkage)
        self.orders = dict(zip(ORDERS, (first, np.random.default_rng(0).permutation(first).tolist()), strict=True))

    @classmethod
    def of(cls, links: str) -> "Judging":
        """Of the links in a file; the judgements are beside them."""
        linkage = read_links(links)
        return cls(linkage, Judgements(judged_file(Path(links)), linkage))

    @friendly
    def start(self, order: str) -> Shown:
        """The first question that nobody has answered."""
        return self.shown(next((row for row in self.rows(order) if row not in self.judgements.of), -1))

    @friendly
    def answer(self, answer: Answer, order: str, number: float) -> Shown:
        """Keeps an answer, and shows the next question."""
        row = self.row(number)
        other = proposed(self.linkage, row)
        judgement: Judgement = "yes" if answer == "runner_up" else answer
        if answer == "runner_up":
            if self.linkage.links[row] < 0 or self.linkage.runners_up[row] < 0:
                raise RefusedError("There is no runner-up: choose another answer.")
            other = int(self.linkage.runners_up[row])
        self.judgements.judge(row, other, judgement)
        return self.start(order)

    @friendly
    def back(self, number: float) -> Shown:
        """The question that was answered before this one."""
        answered = list(self.judgements.of)
        if number in answered:
            answered = answered[: answered.index(int(number))]
        if not answered:
            raise RefusedError("There is no earlier answer.")
        return self.shown(answered[-1])

    def rows(self, order: object) -> list[int]:
        if order not in self.orders:
            raise RefusedError(f"The order is one of: {', '.join(ORDERS)}.")
        return self.orders[order]

    def row(self, number: float) -> int:
        if number == -1:
            raise RefusedError("All are judged: go back to change an answer.")
        if number not in self.orders[ORDERS[0]]:
            raise RefusedError("There is no such question: reload the page.")
        return int(number)

    def shown(self, row: int) -> Shown:
        has_second = row >= 0 and self.linkage.links[row] >= 0 and self.linkage.runners_up[row] >= 0
        records = self.records(row) if row >= 0 else '<p class="verdict">All are judged.</p>'
        return row, self.progress(), records, gr.update(interactive=bool(has_second))

    def progress(self) -> str:
        """HTML: how many are judged, and how."""
        total, counts = len(self.orders[ORDERS[0]]), Counter(said for _, said in list(self.judgements.of.values()))
        done = counts.total()
        words = ", ".join(f"{counts[each]:,} {each}" for each in ("yes", "no", "unsure") if counts[each])
        few = FEW - counts["yes"] - counts["no"]
        if few > 0:
            words += f"{'; ' if words else ''}{few} more until half can choose the threshold and half judge it"
        share = f"{100 * done / max(total, 1):.1f}%"
        return (
            f'<div class="progress"><span style="width:{share}"></span></div>'
            f'<p class="hint"><b>{done:,} of {total:,} judged</b>{": " if words else ""}{words}</p>'
        )

    def records(self, row: int) -> str:
        """HTML: a record, what it may be the same as, and the runner-up of a link."""
        linkage, said = self.linkage, self.judgements.of.get(row)
        linked, runner_up = linkage.links[row] >= 0, int(linkage.runners_up[row])
        score = linkage.scores[row] if linked else linkage.runner_up_scores[row]
        second = linked and runner_up >= 0
        same = "the same as this" if second else "the same as this?"
        parts = [card("Is this record", linkage.asking, row)]
        note = f"<b>{score:.3f}</b>, {'linked' if linked else 'not linked'}"
        parts.append(card(same, linkage.others, proposed(linkage, row), note, said))
        if second:
            note = f"<b>{linkage.runner_up_scores[row]:.3f}</b>"
            parts.append(card("or as the runner-up?", linkage.others, runner_up, note, said))
        return f'<div class="records">{"".join(parts)}</div>'

    def local_paths(self, links: str) -> list[str]:
        """Files and folders of this machine that the page must never serve."""
        catalogues = {str(each.source) for each in (self.linkage.asking, self.linkage.others)}
        return [links, str(self.judgements.path), *(each for each in catalogues if Path(each).exists())]

    def about(self) -> str:
        """HTML: what is linked, and what to do with the answers."""
        linkage = self.linkage
        names = [html.escape(Path(str(each.source)).name) for each in (linkage.asking, linkage.others)]
        what = f"{names[0]} and {names[1]}" if linkage.clusters is None else f"duplicates in {names[0]}"
        file = html.escape(str(self.judgements.path))
        return (
            f'<p class="hint">Links of {what}. Threshold {linkage.threshold:.3f}: {html.escape(linkage.chosen)}. '
            f"Each answer is kept at once in <code>{file}</code>. Run the same <code>hf-vse link</code> again with "
            f"<code>--labels {file}</code>, and they choose the threshold. Different says that the record has no "
            "match; say Unsure if it may have another one. The least certain links are harder than most: judge some "
            "at random too, or the F1 is that of hard ones.</p>"
        )

    def download(self) -> tuple[str, str]:
        return self.judgements.path.name, self.judgements.text()


def card(title: str, records: Records, row: int, note: str = "", said: tuple[int, Judgement] | None = None) -> str:
    """HTML of a record.

    Args:
        note: HTML.
        said: what was said of a pair: the row of its other record, and the judgement.
    """
    image, name = records.image(row), html.escape(records.names[row])
    photo = '<div class="empty">no photograph</div>'
    if image is not None:
        photo = f'<img src="{data_address(thumbnail(image))}" alt="{name}">'
    lines = f"<p>{note}</p>" if note else ""
    if said is not None and said[0] == row:
        lines += f'<p class="said">You said: {said[1]}</p>'
    lines += "".join(f"<p>{html.escape(text)}</p>" for text in records.texts[row][:SENTENCES])
    for field, value in single_values(records.items[row])[:FIELDS]:
        lines += f'<p class="hint">{html.escape(field)}: {html.escape(value[:LETTERS])}</p>'
    return f'<article><p class="hint">{title}</p>{photo}<div><h4>{name}</h4>{lines}</div></article>'


def single_values(item: Any) -> list[tuple[str, str]]:
    """The fields of a record that are a text or a number, and do not name it."""
    fields = item.items() if isinstance(item, dict) else ()
    return [(name, str(value)) for name, value in fields if name not in NAMES and isinstance(value, str | int | float)]


def add_judging(page: Page, judging: Judging) -> None:
    """Adds the place to the page, or the tab, that is being built."""
    with gr.Column(elem_classes="judging"):
        order = gr.Radio(list(ORDERS), value=ORDERS[0], show_label=False, container=False)
        progress = gr.HTML()
        number = gr.Number(-1, visible=False)
        with gr.Row(elem_classes="answers"):
            buttons = {
                name: gr.Button(label, elem_id=f"judge_{name}", variant="primary" if name == "yes" else "secondary")
                for name, label in BUTTONS.items()
            }
            back = gr.Button("Back (b)", elem_id="judge_back")
        records = gr.HTML()  # below the buttons, which so stay where they are
        save = gr.Button("Download the answers (CSV)", size="sm", elem_classes="save")
        file = [gr.Textbox(visible=False), gr.Textbox(visible=False)]
        gr.HTML(judging.about())
    shown = [number, progress, records, buttons["runner_up"]]
    for name, button in buttons.items():
        button.click(partial(judging.answer, name), [order, number], shown, **PRIVATE)
    back.click(judging.back, number, shown, **PRIVATE)
    gr.on([page.load, order.change], judging.start, order, shown, **PRIVATE)
    save.click(judging.download, None, file, **PRIVATE).then(None, file, None, js=SAVE, api_visibility="private")
    page.load(None, js=KEYS)


def links_page(judging: Judging, title: str) -> Page:
    """A page of the links alone."""
    with Page(title=title, analytics_enabled=False) as page:
        gr.HTML(f'<div class="head"><h1>{html.escape(title)}</h1></div>')
        add_judging(page, judging)
    return page.queue_for_strangers()
