"""Tables of engines for galleries: what they take beside a folder, what kills leave, and what billions would take."""

from benchmarks.tables import RESULTS, load, machine

NAMES = {
    "folder": "folder (FAISS)",
    "milvus_lite": "Milvus Lite",
    "milvus": "Milvus 2.3.5, one server",
    "pgvector": "PostgreSQL, pgvector",
    "cluster": "Milvus 2.3.5, nine processes",
}
MIB = 2**20


def engines_table() -> str:
    """A column for each engine, and its ratio to the folder where one says more."""
    if not (RESULTS / "engines.json").is_file():
        return "*Not recorded yet.*"
    result = load("engines")
    measured, ratios = result["engines"], result["ratios_to_the_folder"]

    def compared(name: str, engine: str, value: str) -> str:
        return f"{value} ({ratios[engine][name]:,.1f})" if engine in ratios else value

    rows = {
        "load, CPU s": lambda name, of: compared("load", name, f"{of['load']['cpu_s']:,.0f}"),
        "build, CPU s": lambda name, of: compared("build", name, f"{of['build']['cpu_s']:,.0f}"),
        "one query, median / 95 % ms": lambda name, of: compared(
            "query", name, f"{of['query_ms']['p50']:.1f} / {of['query_ms']['p95']:.1f}"
        ),
        "recall@10": lambda name, of: f"{of['recall']:.3f}",
        "1,000 at once, queries/s": lambda name, of: f"{of['batch']['queries_per_s']:,.0f}",
        "filter keeping 2 %: recall, ms": lambda name, of: filtered(of, "2 %"),
        "filter keeping 20 %: recall, ms": lambda name, of: filtered(of, "20 %"),
        "change of 1,500 items, s": lambda name, of: compared("change", name, f"{of['change']['s']:,.1f}"),
        "memory, MiB": lambda name, of: f"{(of['bytes']['client'] + of['bytes']['servers']) / MIB:,.0f}",
        "disk, MiB": lambda name, of: compared("disk", name, f"{of['bytes']['disk'] / MIB:,.0f}"),
    }
    head = f"{result['vectors']:,} x {result['dim']}"
    lines = [f"| {head} | {' | '.join(NAMES[name] for name in measured)} |", "|---" * (1 + len(measured)) + "|"]
    lines += [
        f"| {title} | {' | '.join(cell(name, of) for name, of in measured.items())} |" for title, cell in rows.items()
    ]
    return "\n".join(lines)


def filtered(of: dict, name: str) -> str:
    return f"{of['filters'][name]['recall']:.2f}, {of['filters'][name]['ms']['p50']:.1f}"


def faults_table() -> str:
    """Of one server of each engine, and of the cluster where it is recorded."""
    lines = ["| fault | engine | right answers | errors said | wrong answers | rows lost |", "|---" * 6 + "|"]
    records = [name for name in ("engine_faults", "engine_faults_cluster") if (RESULTS / f"{name}.json").is_file()]
    for row in (row for name in records for row in load(name)["faults"]):
        lost = row["lost"] + row.get("confirmed_and_gone", 0)
        cells = [row["fault"], NAMES[row["engine"]], *(f"{row[name]:,}" for name in ("right", "said", "wrong"))]
        lines.append(f"| {' | '.join(cells)} | {lost} |")
    return "\n".join(lines)


def engine_commands_sentence() -> str:
    """On which engines the same commands are answered as on a folder."""
    result = load("engine_commands")
    parts = [
        f"{NAMES[name]} {of['equal']}" + (f" (it refuses {len(of['refused_here'])})" if of["refused_here"] else "")
        for name, of in result["engines"].items()
    ]
    return f"Of {len(result['commands'])} commands so many are answered as by a folder: {', '.join(parts)}."


def secrets_table() -> str:
    """Who was let in by servers that want tokens and TLS."""
    lines = ["| who asks | answered as by the folder | refused |", "|---|---|---|"]
    for row in load("engine_secrets")["rows"]:
        lines.append(f"| {row['who']} | {'yes |' if row['let_in'] else '| yes'} |")
    return "\n".join(lines)


def large_gallery_table() -> str:
    """A folder of many millions: opening, memory, queries and a change, before and after which it is searched."""
    result = load("large_gallery")
    built, changed = result["built"], result["changed"]
    before, after = result["searched"], result["searched_after_change"]
    rows = {
        "opened, s": lambda of: f"{of['open']['s']:.2f}",
        "memory, MiB": lambda of: f"{of['resident_bytes']['of_which_own'] / MIB:,.0f}",
        "mapped files beside it, which the system may drop, MiB": lambda of: f"{mapped(of) / MIB:,.0f}",
        "recall@10": lambda of: f"{of['plan']['recall']:.3f}",
        "one query, median / 95 % ms": lambda of: times(of, "plain"),
        "a new condition that keeps 2 %, ms": lambda of: times(of, "filtered_first"),
        "the same condition again, ms": lambda of: times(of, "filtered"),
    }
    lines = [f"| {before['items']:,} x 512, {before['plan']['kind']} | built | after the change |", "|---|---|---|"]
    lines += [f"| {title} | {cell(before)} | {cell(after)} |" for title, cell in rows.items()]
    wrote = f"wrote {changed['written_bytes'] / MIB:,.0f} MiB and kept {changed['linked_bytes'] / MIB:,.0f}"
    lines += [
        "",
        f"Building took {built['cpu_s']:,.0f} CPU seconds; the disk holds "
        f"{result['bytes_on_disk'] / 10**9:.1f} GB. A change of 1,500 items took {changed['s']:,.1f} s; it {wrote}. "
        f"{machine(result)} (`scripts/benchmarks/large_gallery.py`).",
    ]
    return "\n".join(lines)


def mapped(of: dict) -> int:
    return of["resident_bytes"]["after_queries"] - of["resident_bytes"]["of_which_own"]


def times(of: dict, name: str) -> str:
    return f"{of['ms'][name]['p50']:,.1f} / {of['ms'][name]['p95']:,.1f}"


def scaling_search_table() -> str:
    """Memory, disk, machines and money for each size and engine."""
    result = load("scaling_search")
    lines = [
        f"| at assumed prices | {' | '.join(f'{size} vectors' for size in result['needs'])} |",
        "|---" * (1 + len(result["needs"])) + "|",
    ]
    for number, of in enumerate(result["bytes_of_a_vector"]):
        cells = [needed(each[number]) for each in result["needs"].values()]
        measured = f"measured at {of['measured_at']:,}" if of["measured_at"] else "calculated"
        lines.append(
            f"| {NAMES[of['engine']].partition(' 2.3.5')[0]}, {of['index']} ({measured}) | {' | '.join(cells)} |"
        )
    stated = result["stated"]
    note = f"Of one machine ({stated['machine']}): {stated['memory_gib']:.0f} GiB, {stated['disk_tb']} TB, "
    prices = f"{stated['price']:.2f} dollars an hour (assumed)"
    stored = f"{stated['object_price']} dollars for a GB and month in an object store (assumed)"
    return "\n".join([*lines, "", f"{note}{prices}; {stored}."])


def needed(of: dict) -> str:
    size = f"{of['memory_gib']:,.0f} GiB, {of['disk_tb']:,.1f} TB"
    if of["machines"] is None:
        return f"{size}: more than one machine has"
    return f"{size}: {of['machines']:,} for ${of['dollars_a_month']:,} a month"


ENGINE_TABLES = {
    "engines": engines_table,
    "engine_faults": faults_table,
    "engine_secrets": secrets_table,
    "engine_commands": engine_commands_sentence,
    "scaling_search": scaling_search_table,
    "large_gallery": large_gallery_table,
}
