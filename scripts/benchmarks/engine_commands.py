"""The same commands on a folder and on every engine: the answers have to be equal.

    python scripts/benchmarks/engine_commands.py --programs .venv-engines [--engines ...] [--output FILE]

`make engines` runs it. Thirty commands index 24 pictures, search them with sentences, photographs, conditions and the
correction of hubs, change the pictures, change the weights, and copy the gallery. Four more ask for a part of a text,
which Milvus 2.3.5 refuses.
"""

import argparse
import contextlib
import io
import json
import shutil
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from engine_servers import Milvus, MilvusCluster, PostgreSQL, private_network
from measuring import record
from PIL import Image

from hf_vse.cli.main import main as hf_vse
from hf_vse.evaluation.environment import environment

ENGINES = ("milvus_lite", "pgvector", "milvus", "cluster")
TOLERANCE = 2e-4  # of scores
# Of an image 48 numbers, of a sentence some that depend on its letters; SALT stands for weights.
MODEL = """
import numpy as np
from hf_vse import Encoder

class Tones(Encoder):
    def encode_images(self, images):
        return np.stack([np.asarray(image.resize((4, 4)), np.float64).ravel() - SALT for image in images])
    def encode_texts(self, texts):
        return np.stack([np.random.default_rng(len(text)).normal(size=48) for text in texts])
"""


def make_pictures(folder: Path) -> None:
    lines = []
    for row in range(24):
        name = f"{('city', 'lake', 'wood')[row % 3]}/{row:02d}.png"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(row).integers(256, size=(6, 6, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
        said = {"file_name": name, "captions": [f"A picture, number {row}"], "year": 2000 + row}
        said |= {"tags": ["red", "dog"] if row % 2 else ["cat"], "place": ["Como", "Ærø", "a%b_c"][row % 3]}
        lines.append(json.dumps(said | ({"price": row / 4} if row % 5 else {})))
    (folder / "metadata.jsonl").write_text("\n".join(lines))


def change_pictures(folder: Path) -> None:
    """One is new, one another, one gone, and of one something else is said."""
    Image.open(folder / "city/00.png").rotate(90).save(folder / "city/new.png")
    Image.open(folder / "city/03.png").rotate(90).save(folder / "lake/04.png")
    (folder / "lake/01.png").unlink()
    lines = (folder / "metadata.jsonl").read_text()
    (folder / "metadata.jsonl").write_text(lines.replace('"year": 2006', '"year": 1906'))


def commands(place: str, pictures: Path, folder: Path) -> list[list[str] | None]:
    """With None where the pictures change; the last four ask for a part of a text."""
    model, other = (["--model", f"{folder / name}:Tones"] for name in ("tones.py", "other.py"))
    copy = str(folder / "copy") if "://" not in place else place.replace("/photos", "/copy")
    photograph = ["--image", str(pictures / "city/06.png")]
    index = ["index", str(pictures), place]

    def search(*words: str, made_by: list[str] = model) -> list[str]:
        return ["search", place, "a dog", "two dogs", "-k", "5", *made_by, *words]

    def where(*conditions: str, made_by: list[str] = model) -> list[str]:
        return search(*(word for each in conditions for word in ("--where", each)), made_by=made_by)

    return [
        [*index, *model],
        search(),
        search("-k", "100"),
        ["search", place, *photograph, *model],
        ["search", place, "a dog", *photograph, "--image_weight", "0.3", *model],
        where("year>=2004"),
        where("year<2003"),
        where("year=2006"),
        where("year!=2006", "year<=2010"),
        where("tags=dog"),
        where("tags!=cat", "price>1.5"),
        where("place=a%b_c"),
        where("place>D"),
        where("file>=lake", "file<lakf"),
        where("price!=0.25"),
        where("year>3000"),
        where("yaer=2006"),
        where("year"),
        ["search", place, "a dog", *other],
        [*index, *model],
        None,
        [*index, *model],
        search(),
        where("year<1950"),
        [*index, *model, "--query_bank", str(folder / "bank.txt")],
        search("--correction", "inverted_softmax"),
        [*where("year>2003"), "--correction", "qbnorm"],
        [*index, *other],
        ["search", place, "a dog", *other],
        ["index", place, copy],
        ["search", copy, "a dog", "--where", "year>2003", *other],
        where("captions~NUMBER 1", made_by=other),
        where("file~LAKE", "year>2003", made_by=other),
        where("place~ærø", made_by=other),
        where("place~%b_", made_by=other),
    ]


def run(words: list[str]) -> tuple[int, Any]:
    """Exit code, and the answer, or the last line of the error."""
    answer, error = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(answer), contextlib.redirect_stderr(error):
        code = hf_vse([*words, "--json", "--quiet"])
    return code, json.loads(answer.getvalue()) if code == 0 else (error.getvalue().strip().splitlines() or [""])[-1]


def answers(place: str, folder: Path) -> list[tuple[str, int, Any]]:
    """Of each command: its words, its exit code, and what it answered, without the name of the place."""
    shutil.rmtree(folder, ignore_errors=True)
    pictures = folder / "pictures"
    make_pictures(pictures)
    (folder / "tones.py").write_text(MODEL.replace("SALT", "120"))
    (folder / "other.py").write_text(MODEL.replace("SALT", "90"))
    (folder / "bank.txt").write_text("a\nbb\nccc\ndddd\n")
    told = []
    for words in commands(place, pictures, folder):
        if words is None:
            change_pictures(pictures)
            continue
        code, answer = run(words)
        if isinstance(answer, dict):
            answer = {name: value for name, value in answer.items() if name not in ("index", "plan")}
        shown = " ".join(words).replace(place, "GALLERY").replace(str(folder), "DIR")
        answer = json.loads(json.dumps(answer).replace(place, "GALLERY").replace(str(folder), "DIR"))
        told.append((shown, code, answer))
    return told


def equal(one: Any, other: Any) -> bool:
    """Numbers to `TOLERANCE`."""
    if isinstance(one, float) and isinstance(other, float):
        return abs(one - other) <= TOLERANCE
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[name], other[name]) for name in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other


def compare(expected: list[tuple[str, int, Any]], found: list[tuple[str, int, Any]]) -> dict[str, Any]:
    """How many commands are answered alike; which say that the engine cannot; which are answered otherwise."""
    result: dict[str, Any] = {"equal": 0, "refused_here": [], "different": []}
    for (words, code, answer), (_, other_code, other) in zip(expected, found, strict=True):
        if (code, True) == (other_code, equal(answer, other)):
            result["equal"] += 1
        elif code == 0 and other_code == 1 and "like" in str(other):
            result["refused_here"].append(words)
        else:
            result["different"].append({"command": words, "folder": [code, answer], "here": [other_code, other]})
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", nargs="*", choices=ENGINES, default=ENGINES[:3])
    parser.add_argument("--programs", type=Path, help="folder with the package milvus, as `make engines` fills it")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    private_network()
    with tempfile.TemporaryDirectory(prefix="commands") as name:
        work = Path(name)
        work.chmod(0o755)  # PostgreSQL is another user there
        expected = answers(str(work / "index"), work / "data")
        found = {}
        for engine in arguments.engines:
            with ExitStack() as stack:
                place = f"milvus+lite://{work}/galleries.db/photos"
                if engine == "pgvector":
                    place = stack.enter_context(PostgreSQL(work / engine)).location.format("photos")
                elif engine != "milvus_lite":
                    kind = Milvus if engine == "milvus" else MilvusCluster
                    place = f"{stack.enter_context(kind(work / engine, arguments.programs)).location}/photos"
                found[engine] = compare(expected, answers(place, work / "data"))
            print(engine, found[engine], file=sys.stderr, flush=True)
    refused = sum(code != 0 for _, code, _ in expected)
    result = {"command": " ".join(sys.argv), "commands": [words for words, *_ in expected]}
    result |= {"of_which_refused_by_all": refused, "engines": found, "environment": environment()}
    record(result, arguments.output)
    if any(each["different"] for each in found.values()):
        sys.exit("an engine answers otherwise than the folder")


if __name__ == "__main__":
    main()
