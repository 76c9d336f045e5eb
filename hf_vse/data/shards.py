"""Shards: WebDataset archives and parquet files, on this machine or wherever fsspec reaches.

`shards/{00000..00999}.tar` and `s3://bucket/photos/*.parquet` name them. A shard is read as a stream, from its start,
so none has to fit into memory. Images are contents of the shard, never names of files elsewhere.
"""

import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import fsspec
import pyarrow.parquet as pq
from datasets import Image, IterableDataset

from hf_vse.data.columns import find_layout, other_fields, read_row
from hf_vse.data.fields import field_value
from hf_vse.data.schema import CAPTIONS, IMAGE, IMAGE_FEATURES, IMAGE_ID

FORMATS = {".tar": "webdataset", ".parquet": "parquet"}
BRACES = re.compile(r"\{([^{}]*)\}")
RANGE = re.compile(r"(\d+)\.\.(\d+)")
TAR_BLOCK = 512  # bytes; an archive ends with blocks of zeros
# What tells contents apart, as file systems name it; all there are count.
VERSIONS = ("size", "mtime", "ETag", "etag", "md5", "md5Hash", "LastModified", "last_modified", "updated", "sha256")
ASKED_AT_ONCE = 32


class Shard(NamedTuple):
    """A shard: `name` below the folder of all, `url` for fsspec, and `identity`, which changes with its content."""

    name: str
    url: str
    identity: str


class Shards(NamedTuple):
    """Shards in order, and the folder (a path, or a URL) below which all of them are."""

    root: str
    shards: list[Shard]


def find_shards(pattern: str) -> Shards:
    """The shards of a pattern.

    Args:
        pattern: `{000..999}` counts, `{a,b}` lists, `*`, `?` and `[...]` match names.

    Raises:
        FileNotFoundError: there is none, or one that braces name is missing.
        ValueError: braces that cannot be expanded.
    """
    if "://" not in pattern:
        pattern = Path(pattern).expanduser().absolute().as_posix()
    root = re.split(r"[*?\[{]", pattern)[0].rpartition("/")[0]
    fs, root_path = fsspec.url_to_fs(root or "/")
    paths: dict[str, None] = {}
    for each in expanded(pattern):
        path = fsspec.url_to_fs(each)[1]
        paths |= dict.fromkeys(sorted(fs.glob(path)) if re.search(r"[*?\[]", path) else [path])
    with ThreadPoolExecutor(ASKED_AT_ONCE) as pool:
        identities = list(pool.map(partial(identity_of, fs), paths))
    known = {path: each for path, each in zip(paths, identities, strict=True) if each is not None}
    missing = [path for path in paths if path not in known]
    if missing or not paths:
        what = f"{len(missing):,} of {len(paths):,} shards are missing, the first is {missing[0]}" if missing else ""
        raise FileNotFoundError(f"{pattern}: {what or 'no shard is there'}; name those that there are")
    local = "://" not in pattern
    found = [(path[len(root_path) :].lstrip("/"), path, known[path]) for path in paths]
    urls = [path if local else fs.unstrip_protocol(path) for _, path, _ in found]
    return Shards(root, [Shard(name, url, identity) for (name, _, identity), url in zip(found, urls, strict=True)])


def expanded(pattern: str) -> list[str]:
    """The patterns that braces stand for: `{00..10}` counts with equally many digits, `{a,b}` lists.

    Raises:
        ValueError: other braces.
    """
    found = BRACES.search(pattern)
    if found is None:
        if "{" in pattern or "}" in pattern:
            raise ValueError(f"{pattern} has an unmatched brace: write {{00000..00999}} or {{a,b}}")
        return [pattern]
    inside = found.group(1)
    if counted := RANGE.fullmatch(inside):
        first, last = map(int, counted.groups())
        values = [f"{number:0{len(counted.group(1))}d}" for number in range(first, last + 1)]
    else:
        values = inside.split(",")
    if not values or (counted is None and "," not in inside):
        raise ValueError(f"{pattern}: {{{inside}}} stands for nothing: write {{00000..00999}} or {{a,b}}")
    before, after = pattern[: found.start()], expanded(pattern[found.end() :])
    return [before + value + rest for value in values for rest in after]


def identity_of(fs: fsspec.AbstractFileSystem, path: str) -> str | None:
    """16 hex digits that change with the content of a file; None if there is none."""
    try:
        info = fs.info(path)
    except FileNotFoundError:
        return None
    if info["type"] != "file":
        return None
    told = [(name, str(info[name])) for name in VERSIONS if info.get(name) is not None]
    return blake2b(repr(told).encode(), digest_size=8).hexdigest()


def check_unchanged(shard: Shard) -> None:
    """Raises ValueError if a shard is not what it was when it was found."""
    if identity_of(*fsspec.url_to_fs(shard.url)) != shard.identity:
        raise ValueError(f"{shard.url} has changed since the command began: repeat it when it stays as it is")


def read_shard(
    shard: Shard, image_column: str | None = None, caption_column: str | None = None
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Each row of a shard: its image under `image` (undecoded) or `image_features`, and what is known of it.

    `file` of the latter is the name of the shard and, in an archive, of the member, else the number of the row.

    Raises:
        ValueError: it cannot be read to its end, or has no images.
    """
    kind = FORMATS[os.path.splitext(shard.name)[1]]
    check_end(shard)
    stream = opened(shard, kind)
    layout = find_layout(stream.features, image_column, caption_column, needs_captions=False)
    fields = other_fields(stream.features, layout, divided=False)
    if isinstance(stream.features[layout.image], Image):
        stream = stream.cast_column(layout.image, Image(decode=False))
    nested = stream.features.get("json") is not None
    target = IMAGE_FEATURES if layout.image == IMAGE_FEATURES else IMAGE
    for number, row in enumerate(read_to_its_end(stream, shard, kind)):
        inner = (row.get("json") or {}) if nested else {}
        image = row[layout.image]
        if target == IMAGE:
            image = {"bytes": image, "path": None} if isinstance(image, bytes) else image
            check_content(image, shard, layout.image)
        member = number if kind == "parquet" else f"{row['__key__']}.{layout.image}"
        item: dict[str, Any] = {"file": f"{shard.name}/{member}"}
        item |= {own: field_value(row.get(name, inner.get(name)), type_) for name, (own, type_) in fields.items()}
        text = read_row(row, layout)
        if text.image_id is not None:
            item[IMAGE_ID] = text.image_id
        if text.captions:
            item[CAPTIONS] = text.captions
        yield {target: image}, item


def opened(shard: Shard, kind: str) -> IterableDataset:
    try:
        return datasets.load_dataset(kind, data_files=[shard.url], split="train", streaming=True)
    except Exception as error:  # builders raise many types
        raise unreadable(shard, kind, error) from error


def read_to_its_end(stream: IterableDataset, shard: Shard, kind: str) -> Iterator[dict[str, Any]]:
    rows = iter(stream)
    while True:
        try:
            row = next(rows, None)
        except Exception as error:  # of the archive, of its members, of the network
            raise unreadable(shard, kind, error) from error
        if row is None:
            return
        yield row


def unreadable(shard: Shard, kind: str, error: Exception) -> ValueError:
    reason = (str(error.__cause__ or error).strip() or type(error).__name__).splitlines()[0]
    return ValueError(f"{shard.url} cannot be read as {kind}: {reason:.200}")


def check_end(shard: Shard) -> None:
    """Raises ValueError for an archive that was cut between two members, which no reader notices."""
    fs, path = fsspec.url_to_fs(shard.url)
    if shard.name.endswith(".tar") and fs.tail(path, TAR_BLOCK).strip(b"\0"):
        raise ValueError(f"{shard.url} is cut: it does not end as an archive does; copy or write it again")


def check_content(image: Any, shard: Shard, column: str) -> None:
    """Raises ValueError for an image that is the name of a file: a shard could show any file of the disk."""
    name = image if isinstance(image, str) else image["path"] if image and image["bytes"] is None else None
    if name:
        raise ValueError(
            f"{shard.url}: column {column!r} names {name!r:.60} and holds no image: write the contents into the shard"
        )


def picture_in_shard(root: str, name: str) -> dict[str, Any] | None:
    """The undecoded image of an item that `read_shard` gave; None if `name` is that of a file of its own.

    Args:
        root: the folder of the shards.
        name: `file` of the item.
    """
    found = re.fullmatch(r"(.+?\.(?:tar|parquet))/(.+)", name)
    if found is None:
        return None
    url = f"{root}/{found.group(1)}"
    fs, path = fsspec.url_to_fs(url)
    if not fs.isfile(path):
        return None
    if url.endswith(".tar"):
        with fsspec.open(f"tar://{found.group(2)}::{url}") as file:
            return {"path": name, "bytes": file.read()}
    return {"path": name, "bytes": parquet_image(url, int(found.group(2)))}


def parquet_image(url: str, row: int) -> bytes:
    with fsspec.open(url) as file:
        table = pq.ParquetFile(file)
        for group in range(table.num_row_groups):
            count = table.metadata.row_group(group).num_rows
            if row < count:
                features = datasets.Features.from_arrow_schema(table.schema_arrow)
                column = find_layout(features, None, None, needs_captions=False).image
                value = table.read_row_group(group, columns=[column]).column(column)[row].as_py()
                return value if isinstance(value, bytes) else value["bytes"]
            row -= count
    raise ValueError(f"{url} has no row {row}: it has changed since it was indexed")
