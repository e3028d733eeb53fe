"""Files and folders that are there whole or not at all."""

import pytest

from fmjax.small_files import replacing, write_whole


def test_a_file_is_replaced_whole_or_stays_as_it_was(tmp_path):
    path = tmp_path / "file.json"
    write_whole(path, "one\n")
    write_whole(path, "zwölf\r\n")
    assert path.read_bytes() == "zwölf\r\n".encode()
    with pytest.raises(KeyboardInterrupt), replacing(path) as partial:
        partial.write_text("half")
        raise KeyboardInterrupt
    with pytest.raises(UnicodeEncodeError):
        write_whole(path, "\ud800")
    assert path.read_bytes() == "zwölf\r\n".encode() and list(tmp_path.iterdir()) == [path]


def test_a_folder_takes_the_place_of_an_empty_one(tmp_path):
    (tmp_path / "folder").mkdir()
    with replacing(tmp_path / "folder") as partial:
        partial.mkdir()
        (partial / "inside").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["folder", "inside"]
    with pytest.raises(OSError), replacing(tmp_path / "folder") as partial:
        partial.mkdir()
    assert [path.name for path in tmp_path.rglob("*")] == ["folder", "inside"]
