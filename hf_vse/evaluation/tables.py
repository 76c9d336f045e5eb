"""Tables of an evaluation for people to read: plain text, a line for each record."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_vse.embed.adapters.joint import SIGN, joined_names
from hf_vse.evaluation.metrics import RECALLS
from hf_vse.evaluation.record import Record

# What follows "metrics" and "chance" in the name of an entry, and the name of the row in the table.
EQUAL_CAPTIONS = "_equal_captions"
KINDS = {"": "", "_1k_folds": " 5x1K", EQUAL_CAPTIONS: ", equal captions"}


def differ(metrics: Mapping[str, float], other: Mapping[str, float]) -> bool:
    """Whether a recall differs in the one digit that tables show."""
    return any(f"{metrics[name]:.1f}" != f"{other[name]:.1f}" for name in RECALLS)


def equal_captions_matter(record: Record) -> bool:
    """Whether a recall changes where equal captions count as right."""
    return "metrics_equal_captions" in record and differ(record["metrics"], record["metrics_equal_captions"])


def table_rows(records: Mapping[str, Record]) -> dict[str, Mapping[str, float]]:
    """The lines of `recall_table` for records by name: metrics, then chance.

    Equal captions have lines of their own where they change a number. Every split has its own chance, which stands
    once where it is the same for all.
    """
    shown = {
        kind: {name: each for name, each in records.items() if kind != EQUAL_CAPTIONS or equal_captions_matter(each)}
        for kind in KINDS
    }
    rows = {
        f"{name}{words}": record[f"metrics{kind}"]
        for name, record in records.items()
        for kind, words in KINDS.items()
        if name in shown[kind] and f"metrics{kind}" in record
    }
    for kind, words in KINDS.items():
        chances = {name: record[f"chance{kind}"] for name, record in shown[kind].items() if f"chance{kind}" in record}
        if kind:
            chances = {name: each for name, each in chances.items() if differ(each, records[name]["chance"])}
        same = all(each == next(iter(chances.values())) for each in chances.values())
        rows |= {f"chance{words}" if same else f"chance, {name}{words}": each for name, each in chances.items()}
    return rows


def recall_table(rows: Mapping[str, Mapping[str, float]]) -> str:
    """A line for each name, columns R@1, R@5, R@10, MedR of both directions, and rsum."""
    width = max(12, *(len(name) for name in rows))
    columns = [f"{direction}_{level}" for direction in ("i2t", "t2i") for level in ("r1", "r5", "r10", "medr")]
    titles = ["R@1", "R@5", "R@10", "MedR"] * 2
    lines = [
        " " * width + f"{'image -> text':^32}" + f"{'text -> image':^32}",
        " " * width + "".join(f"{title:>8}" for title in titles) + f"{'rsum':>9}",
    ]
    for name, metrics in rows.items():
        cells = [f"{metrics[column]:8.1f}" if column in metrics else f"{'':8}" for column in columns]
        rsum = f"{metrics['rsum']:9.1f}" if "rsum" in metrics else ""
        lines.append(f"{name:<{width}}" + "".join(cells) + rsum)
    return "\n".join(line.rstrip() for line in lines)


def equal_caption_remark(record: Record) -> str:
    """A sentence on the line of equal captions; empty where there is none."""
    if not equal_captions_matter(record):
        return ""
    shared, captions = record["equal_captions"]["captions"], record["captions"]
    return (
        f"{shared:,} of {captions:,} captions ({100 * shared / captions:.0f} %) are word for word captions of other "
        'images too and count as wrong there; in the line "equal captions" they count as right'
    )


def group_remark(record: Record) -> str:
    """A sentence on near-duplicate images of the split; empty where there is none."""
    groups = record.get("groups", {})
    if not groups.get("groups"):
        return ""
    return (
        f"{groups['images']:,} of {record['images']:,} images are in {groups['groups']:,} groups of near-duplicates "
        f"(the largest has {groups['largest']:,}): each counts as wrong for the captions of the others"
    )


def short_names(models: Iterable[str]) -> dict[str, str]:
    """For each model the last part of its name, or the whole names where the last parts are not distinct."""
    last = {name: SIGN.join(Path(part).name or part for part in joined_names(name)) for name in models}
    return last if len(set(last.values())) == len(last) else {name: name for name in last}


def p_value(compared: Mapping[str, Any]) -> str:
    """What follows the letter p: `< 0.001` or `= 0.042`."""
    return "< 0.001" if compared["p_value"] < 0.001 else f"= {compared['p_value']:.3f}"


def value_words(row: Mapping[str, Any]) -> str:
    """The name of a row of `recalls_by_field`: the value, and how many images have it."""
    several = f" ({row['joined']:,} values)" if "joined" in row else ""
    return f"{row['value']:.40}{several}, {row['images']:,} images"


def field_tables(record: Record, name: str) -> list[str]:
    """A table for each field of `by_field`; name: of the model, where there are several."""
    of_model = f"{name}, " if name else ""
    return [
        f"{of_model}by {field}, each query among all images and captions\n"
        + recall_table({value_words(row): row["metrics"] for row in rows})
        + "\n"
        for field, rows in record.get("by_field", {}).items()
    ]


def identification_lines(found: Mapping[str, Any], name: str) -> list[str]:
    """Verification, one-shot identification and open set with their intervals; name: of the model, of several."""
    pairs, one_shot, open_set = found["verification"], found["one_shot"], found["open_set"]

    def percent(value: float, bounds: Sequence[float]) -> str:
        return f"{value:.1f} % ({bounds[0]:.1f} to {bounds[1]:.1f})"

    low, high = pairs["roc_auc_interval"]
    examples = "one reference" if found["references"] == 1 else f"{found['references']} references"
    of_model = f"{name}, " if name else ""
    lines = [
        f"{of_model}things: {found['classes']:,} with {found['images']:,} images"
        + (f"; {found['trained_on']:,} of things in the training split are left out" if found["trained_on"] else ""),
        f"  two images of one thing: ROC-AUC {pairs['roc_auc']:.4f} ({low:.4f} to {high:.4f}), true accepts "
        f"{percent(pairs['tar'], pairs['tar_interval'])} at {pairs['far']:g} % false accepts",
        f"  {examples} a thing: top-1 {percent(one_shot['top1'], one_shot['top1_interval'])}, by chance "
        f"{one_shot['chance']:.2g} %",
    ]
    lines += [
        f"    with {each['distractors']:,} distractors: {percent(each['top1'], each['top1_interval'])}"
        for each in one_shot.get("with_distractors", [])
    ]
    known = percent(open_set["tpir"], open_set["tpir_interval"])
    strangers = f"where {open_set['fpir']:g} % of strangers are taken for one"
    return [*lines, f"  recognised: {known} {strangers}; AUROC of known against unknown {open_set['auroc']:.4f}"]


def evaluation_table(evaluation: Mapping[str, Any]) -> str:
    """Recalls of models on one split, how sure they are, and whether the models differ; see `record.py`."""
    records = evaluation["metrics"]
    names = short_names(records)
    first = next(iter(records.values()))
    titles = names if len(records) > 1 else dict.fromkeys(records, first["split"] or "all")
    lines = [first["title"], "", recall_table(table_rows({titles[name]: each for name, each in records.items()})), ""]
    if remark := next(filter(None, map(equal_caption_remark, records.values())), ""):  # the data are the same for all
        lines += [remark, ""]
    if remark := next(filter(None, map(group_remark, records.values())), ""):
        lines += [remark, ""]
    for name, record in records.items():
        lines += field_tables(record, names[name] if len(records) > 1 else "")
    for name, record in records.items():
        if "identification" in record:
            lines += [*identification_lines(record["identification"], names[name] if len(records) > 1 else ""), ""]
    for name, record in records.items():
        low, high = record["intervals"]["rsum"]
        lines.append(f"{names[name]}: rsum {record['metrics']['rsum']:.1f}, 95 % interval {low:.1f} to {high:.1f}")
    for each in evaluation.get("comparisons", []):
        found = each["metrics"]["rsum"]
        pair = f"{names[each['second']]} minus {names[each['first']]}"
        lines.append(f"{pair}: rsum {found['difference']:+.1f}, p {p_value(found)}")
    return "\n".join(lines)
