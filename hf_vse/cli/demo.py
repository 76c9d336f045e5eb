"""`hf-vse demo`."""

import argparse
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_vse.cli.command import (
    PACKAGE,
    Result,
    add_data_options,
    add_model_options,
    at_least_zero,
    bundled,
    command_parser,
    data_options,
    model_options,
    positive,
)
from hf_vse.cli.identify import add_things, add_unknown, check_unknown
from hf_vse.files import whole_file

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset

    from hf_vse.search.store import GalleryRow

DESCRIPTION = """Opens the demo page with a model: type a sentence and see photographs, drop a photograph and see
sentences, label photographs, add your own. Without --model it takes runs/quickstart, or trains a small model first
(once, about a minute). Without --dataset it shows what the model was trained on. Where a gallery has labels, drop a
photograph to see which thing it shows. --links alone opens a page that asks whether linked records are the same."""
EXAMPLES = """
  hf-vse demo                                                generated scenes, nothing to download
  hf-vse demo my_index                                       the images and the model of a gallery
  hf-vse demo logos_index --label brand                      a place that tells which brand a photograph shows
  hf-vse demo --links links.csv                              the links of `hf-vse link`, to be judged by a person
  hf-vse demo --model runs/flickr8k_photos --data_dir DIR    the photographs of its validation split
  hf-vse demo --model org/vse-flickr8k --dataset org/my-photos
  hf-vse demo --model DIR --compare google/siglip-base-patch16-224 --port 7861"""
QUICKSTART = Path("runs/quickstart")
MOST_IMAGES = 5000  # that the page shows, unless told otherwise
THINGS = ("label", "label_is_text", "image_weight", "threshold", "false_accept_rate", "labelled")
SMALL_RUN = ("--difficulty", "easy", "--num_train", "1200", "--num_eval", "300", "--num_train_epochs", "4")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = command_parser("demo", DESCRIPTION, EXAMPLES)
    parser.add_argument("gallery", nargs="?", help="what `hf-vse index` has written: its images and its model")
    parser.add_argument("--model", help="any model that `hf-vse evaluate` takes [runs/quickstart]")
    parser.add_argument("--compare", help="a second model, to see both side by side")
    add_model_options(parser)
    add_data_options(parser, None, "; a Hub id, parquet file or image folder is read by the page itself")
    parser.add_argument("--split", help="split to show [validation, else test, else train]")
    parser.add_argument("--max_images", type=positive, help="photographs in the gallery at most [5000]")
    parser.add_argument(
        "--links", type=Path, metavar="FILE", help="links of `hf-vse link` to judge; alone, without a model"
    )
    parser.add_argument("--title", help="heading of the page")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 to be reached from other machines [127.0.0.1]")
    parser.add_argument("--port", type=at_least_zero, help="[7860, or the next that is free]")
    group = parser.add_argument_group("recognise things of a gallery, as `hf-vse identify`")
    add_things(group)
    add_unknown(group)
    arguments = parser.parse_args(argv)
    check_unknown(parser, arguments)
    given = [name for name in THINGS if getattr(arguments, name) != parser.get_default(name)]
    if given and arguments.gallery is None:
        parser.error(f"--{given[0]} is of the things of a gallery: name one that `hf-vse index` has written")
    arguments.recognise = bool(given)
    searched = ("gallery", "model", "compare", "dataset", "split", "max_images")
    asked = [name for name in (*searched, *data_options(arguments)) if getattr(arguments, name) is not None]
    arguments.links_alone = arguments.links is not None and not asked
    return arguments


def run(arguments: argparse.Namespace) -> Result | None:
    if not find_spec("gradio"):
        raise ImportError("the demo needs gradio: pip install 'hf_vse[demo]'")
    from hf_vse.embed.load import model_place

    places, vectors = places_of(arguments), None
    if arguments.links_alone:
        model = dataset = None
    elif arguments.gallery is None:
        model = default_model(arguments.quiet) if arguments.model is None else arguments.model
        dataset = photographs(arguments, model)
    else:
        model, dataset, vectors = of_gallery(arguments)
    settings = {
        "VSE_MODEL": model,
        "VSE_COMPARE": arguments.compare,
        "VSE_DATASET": dataset,
        "VSE_SPLIT": arguments.split,
        "VSE_MAX_IMAGES": arguments.max_images,
        "VSE_TITLE": arguments.title,
        "GRADIO_SERVER_NAME": arguments.host,
        "GRADIO_SERVER_PORT": arguments.port,
    }
    given = {name: str(value) for name, value in settings.items() if value is not None}
    for name in ("VSE_MODEL", "VSE_COMPARE", "VSE_DATASET"):  # the page runs in its own folder
        if name in given:
            given[name] = model_place(given[name])
    given["PYTHONPATH"] = os.pathsep.join(filter(None, [str(PACKAGE.parent), os.environ.get("PYTHONPATH")]))
    told = {"model": None if arguments.links_alone else page_options(arguments, vectors), "places": places}
    command = [sys.executable, "-m", "hf_vse.cli.demo_page", json.dumps(told)]
    code = run_to_its_end(command, cwd=bundled("spaces_demo"), env=os.environ | given)
    if code not in (0, -2, 130):
        raise ValueError(f"the page ended with exit code {code}; its last lines say why")
    return None


def page_options(arguments: argparse.Namespace, vectors: str | None) -> dict[str, Any]:
    """How the page opens its models, see `LocalModel`; `vectors` are those of a gallery."""
    from hf_vse.search.locations import absolute_location

    if arguments.gallery is None:
        return model_options(arguments)
    kept = {"gallery": absolute_location(arguments.gallery), "vectors": vectors}
    return model_options(arguments) | kept


def places_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """What the page has beside search, see `add_places`.

    A gallery that the page shows only in part is searched for things only if an option asks for it: that takes time.
    """
    from hf_vse.link.judging import read_description
    from hf_vse.link.records import absolute_source
    from hf_vse.search.locations import open_store

    places: dict[str, Any] = {}
    if arguments.links is not None:
        read_description(arguments.links)  # what is wrong is said before the page starts
        places["links"] = str(arguments.links.absolute())
    if arguments.gallery is None:
        return places
    if arguments.recognise or len(open_store(arguments.gallery)) <= (arguments.max_images or MOST_IMAGES):
        things = {name: getattr(arguments, name) for name in THINGS}
        if arguments.labelled is not None:
            things["labelled"] = absolute_source(arguments.labelled)
        places["things"] = things | {"gallery": absolute_source(arguments.gallery), "asked": arguments.recognise}
    return places


def of_gallery(arguments: argparse.Namespace) -> tuple[str, str, str | None]:
    """The name of the model of a gallery (or `--model`), the images of the gallery in one file, and their vectors.

    An image without a caption is shown with the name of its file.
    """
    from datasets import Dataset, Image

    from hf_vse.data.schema import CAPTIONS, IMAGE, IMAGE_ID
    from hf_vse.search.locations import open_store
    from hf_vse.search.model import recorded_name
    from hf_vse.search.pictures import picture_of
    from hf_vse.search.store import in_order

    useless = [name for name in ("compare", "dataset", "split") if getattr(arguments, name) is not None]
    if useless := [*useless, *data_options(arguments)]:
        raise ValueError(f"--{useless[0]} is of no use: a gallery has a model and images of its own; leave it out")
    gallery = open_store(arguments.gallery)
    model = arguments.model
    if model is None:
        model = recorded_name(gallery, arguments.trust_remote_code)
    stored = (each for rows, embeds in gallery.rows() for each in zip(rows, embeds, strict=True))
    found = sorted(islice(stored, arguments.max_images or MOST_IMAGES), key=lambda each: in_order(each[0]))
    items = [row.item for row, _ in found]
    if not all(isinstance(item, dict) and "file" in item for item in items):
        raise ValueError(f"{arguments.gallery} was not made from files: leave it out, and name its model and data set")
    rows = {
        IMAGE: [picture_of(gallery.facts.get("root"), item["file"]) for item in items],
        CAPTIONS: [item.get(CAPTIONS) or [Path(item["file"]).stem] for item in items],
        IMAGE_ID: list(range(len(items))),
    }
    file = one_file(Path(arguments.gallery).name, Dataset.from_dict(rows).cast_column(IMAGE, Image()))
    return model, str(file), keep_vectors(gallery.facts, found, file)


def keep_vectors(facts: dict[str, Any], found: "list[tuple[GalleryRow, np.ndarray]]", images: Path) -> str | None:
    """Writes the vectors of the rows of `images` beside it; nan where a file is another than that of the gallery.

    Returns:
        None for a gallery of no folder, or whose model has no digest.
    """
    import numpy as np
    import pyarrow.parquet as pq
    from safetensors.numpy import save_file

    from hf_vse.data.schema import IMAGE_ID
    from hf_vse.search.gallery_images import file_key

    root, digest = facts.get("root"), facts.get("digest")
    if root is None or digest is None:
        return None
    vectors = np.stack([np.asarray(embed, np.float32) for _, embed in found])
    keys = [file_key(row.item["file"], Path(root) / row.item["file"]) for row, _ in found]
    vectors[[key != row.key for key, (row, _) in zip(keys, found, strict=True)]] = np.nan
    shown = pq.read_table(images, columns=[IMAGE_ID])[IMAGE_ID].to_numpy()  # without broken images
    path = images.with_name(f"{images.stem}-{digest[:16]}.safetensors")
    with whole_file(path) as unfinished:
        save_file({"vectors": vectors[shown]}, unfinished)
    return str(path)


def run_to_its_end(command: Sequence[str], **options: Any) -> int:
    """Runs a process to its end and returns its exit code. SIGTERM is passed on, and then ends this process too.

    Args:
        options: of `subprocess.Popen`.

    Raises:
        SystemExit: with 143, after SIGTERM.
    """
    started: list[subprocess.Popen] = []
    told_to_end = False

    def pass_on(*_: Any) -> None:
        nonlocal told_to_end
        told_to_end = True
        for process in started:
            process.terminate()

    before = signal.signal(signal.SIGTERM, pass_on)
    try:
        started.append(subprocess.Popen(command, **options))
        if told_to_end:  # while it was started
            started[0].terminate()
        code = started[0].wait()
    finally:
        signal.signal(signal.SIGTERM, before)
        for process in started:  # after an interrupt it may still be there
            process.terminate()
            process.wait()
    if told_to_end:
        raise SystemExit(128 + signal.SIGTERM)
    return code


def cache() -> Path:
    from huggingface_hub.constants import HF_HOME

    return Path(HF_HOME) / "hf_vse_demo"


def default_model(quiet: bool) -> str:
    """The model of the quickstart, or a small one that is trained once and cached."""
    if (QUICKSTART / "model.safetensors").is_file():
        return str(QUICKSTART)
    folder = cache() / "model"
    if not (folder / "model.safetensors").is_file():
        print("no model yet: training a small one on generated scenes, once", file=sys.stderr)
        command = [sys.executable, "-m", "hf_vse.cli", "train", "quickstart", *SMALL_RUN, "--output_dir", str(folder)]
        code = run_to_its_end([*command, *(["--quiet"] if quiet else [])], stdout=sys.stderr)
        if code:
            raise ValueError(f"training the small model ended with exit code {code}; its last lines say why")
    return str(folder)


def photographs(arguments: argparse.Namespace, model: str) -> str:
    """What the page reads: a path or Hub id as given, or a parquet file of the data of training or of `load_pairs`."""
    from hf_vse.data.sources import SOURCES
    from hf_vse.data.spec import DataSpec, is_same

    given, dataset = data_options(arguments), arguments.dataset
    if dataset is not None and dataset not in SOURCES and not given:
        if not is_same(dataset, DataSpec.of_model(model).source):
            return dataset
    return str(write_parquet(DataSpec.of_model(model, dataset, arguments.split, **given)))


def shown(spec: Any) -> Any:
    """The split asked for; else validation, test, what training held out, or the training images."""
    if spec.split is not None:
        return spec.load_split()
    splits = replace(spec, validation_share=0).load()  # those that the source has
    splits = splits if {"validation", "test"} & splits.keys() else spec.load()
    names = [name for name in ("validation", "test", "train") if name in splits]
    return splits[names[0]] if names else replace(spec, split="validation").load_split()


def write_parquet(spec: Any) -> Path:
    """One split with its images in one file, in the cache, named after its content."""
    from hf_vse.data.schema import IMAGE

    chosen = shown(spec)
    if IMAGE not in chosen.column_names:
        raise ValueError(f"{spec.source} was read as features: the page needs photographs; leave out --features")
    return one_file(Path(spec.source).name, chosen)


def one_file(source: str, images: "Dataset") -> Path:
    """Images with their captions in a parquet file, in the cache, named after its content."""
    from datasets.table import embed_table_storage

    from hf_vse.data.digests import images_digest
    from hf_vse.data.pairs import undecoded_images
    from hf_vse.data.schema import CAPTIONS, IMAGE, IMAGE_ID, data_fingerprint
    from hf_vse.hub.data import without_broken_images

    name = f"{data_fingerprint(images)}-{images_digest(undecoded_images(images))[:8]}"
    path = cache() / "galleries" / f"{source}-{name}.parquet"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".new")
        sound, _ = without_broken_images(source, images.select_columns([IMAGE, IMAGE_ID, CAPTIONS]))
        embedded = sound.with_format("arrow").map(embed_table_storage, batched=True, desc="reading images")
        embedded.with_format(None).to_parquet(str(unfinished))
        unfinished.replace(path)
    return path
