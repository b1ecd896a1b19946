"""utils/files.py: files that appear whole or not at all, and outputs refused before the work."""

import os

import pytest

from tests.unprivileged import as_nobody
from utils.errors import UserError
from utils.files import replacing, require_writable


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "folder" / "file"
    with replacing(path) as file:
        file.write(b"old")
        assert not path.exists()
    with pytest.raises(RuntimeError), replacing(path) as file:
        file.write(b"new")
        raise RuntimeError
    assert path.read_bytes() == b"old"
    assert os.listdir(path.parent) == ["file"]


def test_places_where_no_file_can_be_made_are_refused_by_name(tmp_path):
    (tmp_path / "file").write_text("there")
    require_writable(None, tmp_path / "file", tmp_path / "a" / "b" / "c")
    assert os.listdir(tmp_path) == ["file"], "nothing is made"
    for path, message in ((tmp_path, "is not a file"), ("/dev/null", "is not a file"),
                          (tmp_path / "file" / "below", "not a writable folder")):
        with pytest.raises(UserError, match=message) as caught:
            require_writable(path)
        assert str(path) in str(caught.value)
        with pytest.raises(UserError, match=message), replacing(path):
            pass


def test_a_folder_without_permission_is_refused(open_folder):
    mode = open_folder.stat().st_mode
    open_folder.chmod(0o555)
    with as_nobody(), pytest.raises(UserError, match=f"{open_folder} is not a writable folder"):
        require_writable(open_folder / "file")
    open_folder.chmod(0o777)
    with as_nobody():
        require_writable(open_folder / "file")
    open_folder.chmod(mode)


def test_two_outputs_in_one_place_are_refused(tmp_path):
    with pytest.raises(UserError, match="written twice"):
        require_writable(tmp_path / "file", tmp_path / "x" / ".." / "file")


def test_an_output_in_the_place_of_an_input_is_refused(tmp_path):
    (tmp_path / "cache").write_text("there")
    with pytest.raises(UserError, match="cache: is what is read"):
        require_writable(tmp_path / "x" / ".." / "cache", inputs=(None, tmp_path / "cache"))
    require_writable(tmp_path / "other", inputs=(None, tmp_path / "cache"))
