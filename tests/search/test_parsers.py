"""Parsers of what people write, with anything they might write."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from hf_vse.search.filters import COMPARE, matching, parse_condition
from hf_vse.search.gallery import GalleryIndex
from hf_vse.search.gallery_images import is_unicode, read_metadata
from hf_vse.search.header import checksum_of, read_header, to_json

bounded = settings(
    max_examples=50, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
texts = st.text(st.characters(exclude_categories=()), max_size=30)  # lone surrogates among them
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
items = st.lists(st.dictionaries(st.sampled_from(["year", "place", "tags"]), values, max_size=3) | values, max_size=6)


@bounded
@given(
    field=st.text("aZ_.-7é", min_size=1, max_size=8),
    sign=st.sampled_from([*COMPARE, "==", "~"]),
    wanted=st.text("aZ_.-7é :/&,", min_size=1, max_size=10),
    space=st.sampled_from(["", " ", "\t "]),
)
def test_a_condition_has_three_parts(field, sign, wanted, space):
    assume(wanted == wanted.strip() != "")
    condition = parse_condition(f"{space}{field}{space}{sign}{space}{wanted}{space}")
    assert condition == (field, "=" if sign == "==" else sign, wanted)


@bounded
@given(items, texts | st.builds("{}{}{}".format, st.sampled_from(["year", "place"]), st.sampled_from("=~<>!"), texts))
def test_any_condition_chooses_or_is_refused(items, condition):
    try:
        allowed = matching(items, [condition])
    except ValueError as error:
        assert "condition" in str(error)
    else:
        assert allowed.shape == (len(items),) and allowed.dtype == bool


@bounded
@given(
    st.lists(st.integers(-5, 5) | st.none(), min_size=1, max_size=8), st.sampled_from([*COMPARE]), st.integers(-5, 5)
)
def test_conditions_on_numbers_are_those_of_python(years, sign, wanted):
    assume(any(year is not None for year in years))
    expected = [year is not None and COMPARE[sign](year, wanted) for year in years]
    assert matching([{"year": year} for year in years], [f"year{sign}{wanted}"]).tolist() == expected


@bounded
@given(st.lists(values, min_size=1, max_size=5))
def test_a_gallery_gives_back_its_items(tmp_path_factory, items):
    folder = tmp_path_factory.mktemp("gallery")
    GalleryIndex(np.eye(len(items), 8), items, model="m").save(folder)
    assert GalleryIndex.load(folder).items == items


@pytest.fixture(scope="module")
def header(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("header")
    GalleryIndex(np.eye(4), model="m").save(folder)
    return json.loads((folder / "gallery.json").read_text())


@bounded
@given(
    name=st.sampled_from("format version files items dim plan model digest origin broken root x".split()), value=values
)
def test_any_header_is_read_or_refused(header, tmp_path, name, value):
    changed = header | {name: value}
    changed["checksum"] = checksum_of(changed)
    (tmp_path / "gallery.json").write_text(to_json(changed))
    try:
        read = read_header(tmp_path)
    except ValueError as error:
        assert name in str(error) and "gallery.json" in str(error)
    else:
        assert read | {"plan": read["plan"].to_dict()} == changed


def lines_of(path: Path, content: str | bytes) -> dict | None:
    path.write_bytes(content if isinstance(content, bytes) else content.encode(errors="surrogatepass"))
    try:
        return read_metadata(path.parent)[0]
    except ValueError as error:
        assert str(path) in str(error)
        return None


@bounded
@given(texts | st.binary(max_size=40) | values.map(json.dumps))
def test_any_metadata_is_read_or_refused(tmp_path, content):
    lines_of(tmp_path / "metadata.jsonl", content)


@bounded
@given(
    st.dictionaries(
        st.from_regex(r"[a-z]{1,5}(/[a-z]{1,5})?\.png", fullmatch=True),
        st.dictionaries(st.sampled_from(["year", "place", "captions"]), values, max_size=3),
        max_size=5,
    ),
    st.booleans(),
)
def test_metadata_gives_back_what_was_written(tmp_path, described, as_ascii):
    text = "\n".join(
        json.dumps({"file_name": name} | fields, ensure_ascii=as_ascii) for name, fields in described.items()
    )
    right = all(
        isinstance(captions, str)
        and is_unicode(captions)
        or isinstance(captions, list)
        and all(isinstance(caption, str) and is_unicode(caption) for caption in captions)
        for fields in described.values()
        for captions in [fields.get("captions", "")]
    )
    read = lines_of(tmp_path / "metadata.jsonl", text)
    if not right or not is_unicode(text):
        assert read is None
        return
    for fields in described.values():
        if isinstance(fields.get("captions"), str):
            fields["captions"] = [fields["captions"]]
    assert read == described
