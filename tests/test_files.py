"""Reading and writing files: one clear line, whole or not at all."""

import csv
import json
import os
import sys

import pytest

from hf_vse.errors import refusal
from hf_vse.files import (
    check_output_file,
    check_output_folder,
    inside,
    numbered_lines,
    parse_json,
    read_json,
    read_json_lines,
    read_text,
    write_json,
    write_table,
    write_text,
)


def test_lines_end_with_a_line_feed_and_nothing_else(tmp_path):
    path = tmp_path / "lines.txt"
    path.write_bytes("\ufeffone\r\n\n  \ntwo\u2028still two\x85too\nthree".encode())
    assert list(numbered_lines(path)) == [(1, "one"), (4, "two\u2028still two\x85too"), (5, "three")]


def test_what_is_no_text_is_said_with_its_place(tmp_path):
    path = tmp_path / "latin1.txt"
    path.write_bytes(b"caf\xe9")
    with pytest.raises(
        ValueError, match=r"latin1.txt is not valid UTF-8 \(byte 0xe9 at position 3\): save it as UTF-8"
    ):
        read_text(path)


@pytest.mark.parametrize(
    ("text", "kind", "says"),
    [
        ("", dict, "is not valid JSON"),
        ("{", dict, "is not valid JSON"),
        ("null", dict, "holds NoneType, not an object"),
        ("[1]", dict, "holds list, not an object"),
        ("{}", list, "holds dict, not a list"),
        ("[" * 100_000, None, "nested too deeply"),
    ],
)
def test_json_that_is_none_is_said_in_one_line(tmp_path, text, kind, says):
    path = tmp_path / "file.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"file.json .*{says}|file.json.*{says}") as refused:
        read_json(path, kind)
    assert "\n" not in str(refused.value)


def test_a_line_of_json_is_named_by_its_number(tmp_path):
    path = tmp_path / "file.jsonl"
    path.write_text('{"a": 1}\n\n[2]\n')
    lines = read_json_lines(path)
    assert next(lines) == (1, {"a": 1})
    with pytest.raises(ValueError, match="file.jsonl, line 3 holds list"):
        next(lines)


def test_what_is_written_is_read(tmp_path):
    write_json(tmp_path / "deep" / "file.json", {"caption": "café \u2028"})
    assert read_json(tmp_path / "deep" / "file.json", dict) == {"caption": "café \u2028"}
    assert os.listdir(tmp_path / "deep") == ["file.json"]


def test_what_cannot_be_written_leaves_the_old(tmp_path):
    write_text(tmp_path / "file.json", "old")
    with pytest.raises(TypeError):
        write_json(tmp_path / "file.json", object())
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "file.json", "\ud83d")
    assert read_text(tmp_path / "file.json") == "old" and os.listdir(tmp_path) == ["file.json"]


def test_a_table_is_read_as_it_was_written(tmp_path):
    path = tmp_path / "new/table.csv"
    write_table(path, ("name", "score"), iter([('a "b", c\nd', "0.5"), ("\udce9.jpg", None)]))
    with path.open(encoding="utf-8", newline="") as file:
        assert list(csv.reader(file)) == [["name", "score"], ['a "b", c\nd', "0.5"], ["\\udce9.jpg", ""]]
    with pytest.raises(ZeroDivisionError):
        write_table(path, ("other",), ([1 / each] for each in (1, 0)))
    assert path.read_text(encoding="utf-8").startswith("name,score\n")
    assert [each.name for each in path.parent.iterdir()] == ["table.csv"]


def test_outputs_are_checked_before_the_work(tmp_path):
    (tmp_path / "file").write_text("")
    assert check_output_file("--output", tmp_path / "new" / "deep.json").name == "deep.json"
    assert check_output_folder("index", tmp_path / "new") == tmp_path / "new"
    for path, says in (
        (tmp_path, "is a folder"),
        (tmp_path / "file" / "deep.json", "which is a file"),
        (tmp_path / ("x" * 300), "cannot be used"),
        ("a\0b", "is not a valid file name"),
        (" ", "is not a valid file name"),
        ("~nobody-of-that-name/x", "no such user"),
    ):
        with pytest.raises(OSError, match=f"^--output .*{says}"):
            check_output_file("--output", path)
    with pytest.raises(OSError, match="^index .*file is a file"):
        check_output_folder("index", tmp_path / "file")
    with pytest.raises(OSError, match="MB are needed"):
        check_output_file("--output", tmp_path / "new.json", needed=2**60)
    assert sorted(os.listdir(tmp_path)) == ["file"]


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is no place to write on Linux")
def test_a_folder_that_takes_no_files_is_found_before_the_work():
    with pytest.raises(OSError, match="^--output .*(is not writable|MB free)"):
        check_output_file("--output", "/proc/none.json")


@pytest.mark.parametrize("name", ["a.png", "b/a.png", "./a.png", "a..b.png", ".hidden/a.png"])
def test_names_within_a_folder(tmp_path, name):
    assert inside(tmp_path, name, "file_name").is_relative_to(tmp_path)


BAD_NAMES = ["", " ", None, 3, ["a"], "/etc/passwd", "../a", "b/../../a", "a\0", "C:\\a", "..\\a", "\\\\host\\a"]


@pytest.mark.parametrize("name", [*BAD_NAMES, "http://host/a.png", "file:///a.png"])
def test_names_that_lead_out_of_a_folder_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match="^metadata.jsonl, line 1: file_name is "):
        inside(tmp_path, name, "metadata.jsonl, line 1: file_name")


def test_a_fault_of_the_machine_is_one_line_whoever_met_it():
    full = OSError(28, "No space left on device", "x.json")
    assert refusal(full).endswith("free some disk space and repeat the command")
    assert "smaller batch" in refusal(MemoryError())
    assert "smaller batch" in refusal(RuntimeError("DefaultCPUAllocator: can't allocate memory"))
    assert refusal(RuntimeError("shapes differ")) is None and refusal(OSError(2, "no such file")) is None


def test_a_fault_of_ours_keeps_its_traceback():
    with pytest.raises(ValueError) as refused:
        parse_json("{", "x.json")
    assert refusal(refused.value).startswith("x.json is not valid JSON")
    with pytest.raises(ValueError) as broken:
        json.loads("{")
    assert refusal(broken.value) is None
