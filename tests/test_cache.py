"""A cache is never needed: what it should hold is made anew, and that is said."""

import os
import pwd

import pytest

from amd_plugin import cache, doctor
from amd_plugin.cache import cached
from amd_plugin.disk import at_home
from amd_plugin.errors import InputError
from amd_plugin.models.pretrained import Pretrained


@pytest.fixture
def made(tmp_path, monkeypatch):
    """``made()``: the folder of something cached below tmp_path/cache; ``made.times``: how often it was made."""
    monkeypatch.setenv("AMD_PLUGIN_CACHE", str(tmp_path / "cache"))
    cache.own_root.cache_clear()

    def make(folder):
        get.times += 1
        (folder / "weights").write_bytes(b"0123456789")

    def get():
        folder = cached("thing", {"a": 1}, make)
        assert (folder / "weights").read_bytes() == b"0123456789"
        return folder

    get.times = 0
    yield get
    cache.own_root.cache_clear()


def test_it_is_made_once(made):
    assert made() == made() and made.times == 1


HARM = {
    "cut": lambda path: path.write_bytes(b"01234"),
    "empty": lambda path: path.write_bytes(b""),
    "gone": lambda path: path.unlink(),
    "a flipped byte": lambda path: path.write_bytes(b"0123x56789"),
    "too many bytes to be read in a day": lambda path: os.truncate(path, 1 << 42),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "a link to nowhere": lambda path: (path.unlink(), path.symlink_to("nowhere")),
    "checksums cut": lambda path: (path.parent / "checksums.json").write_text('{"weights": "12'),
    "checksums gone": lambda path: (path.parent / "checksums.json").unlink(),
    "no checksums": lambda path: (path.parent / "checksums.json").write_text("{}"),
    "checksums of no name": lambda path: (path.parent / "checksums.json").write_text(
        '{"made_of.json": [1, "a"], "we\\u0000ights": [1, "a"]}'
    ),
    "checksums of another kind": lambda path: (path.parent / "checksums.json").write_text("[1]"),
}


@pytest.mark.parametrize("harm", HARM)
def test_what_is_damaged_is_made_anew(harm, made, caplog):
    folder = made()
    HARM[harm](folder / "weights")
    assert made() == folder == made() and made.times == 2
    assert caplog.text.count("it is made anew") == 1


UNUSABLE = {
    "a file in place of the cache": lambda root, lock: root.write_text(""),
    "a lock that is a folder": lambda root, lock: lock.mkdir(parents=True),
    "a lock that is a link to itself": lambda root, lock: (root.mkdir(), lock.symlink_to(lock)),
    "a link to nowhere in place of the cache": lambda root, lock: root.symlink_to("nowhere"),
    "a file above the cache": None,
}


@pytest.mark.parametrize("how", UNUSABLE)
def test_what_cannot_be_used_is_done_without(how, made, tmp_path, monkeypatch, caplog):
    root = tmp_path / "cache"
    name = made().name
    root.rename(tmp_path / "aside")
    if UNUSABLE[how] is None:
        (tmp_path / "file").touch()
        monkeypatch.setenv("AMD_PLUGIN_CACHE", str(tmp_path / "file" / "below"))
    else:
        UNUSABLE[how](root, root / f"{name}.lock")
    folder = made()
    assert made() == folder and made.times == 2 and tmp_path not in folder.parents
    assert "is made for this process alone. Set AMD_PLUGIN_CACHE" in caplog.text


def test_an_empty_name_is_not_the_current_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("AMD_PLUGIN_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.users_root() == tmp_path / "amd-plugin"


def test_a_user_without_a_home_folder_has_none(made, monkeypatch, caplog):
    """Containers are started with any number for a user: that was a traceback of pathlib."""

    def nobody(uid):
        raise KeyError(uid)

    for name in ("AMD_PLUGIN_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    cache._nowhere.cache_clear()
    assert made() == made() and made.times == 1 and cache.own_root() in made().parents
    assert caplog.text.count("this user has no home folder; all is made for this process alone. Set AMD_PLUGIN_CACHE") == 1
    assert not doctor._cache().ok and "no home folder" in doctor._cache().found
    cache._nowhere.cache_clear()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_a_cache_that_one_may_only_read_is_used(made, tmp_path, caplog):
    """Of another user, or on a disk that is mounted for reading: its lock cannot be taken."""
    folder = made()
    above = [path for path in tmp_path.parents if path.stat().st_mode & 0o055 != 0o055]
    for path in (tmp_path, *above, *tmp_path.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    os.seteuid(65534)
    try:
        assert made() == folder and made.times == 1 and not caplog.text
    finally:
        os.seteuid(0)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_a_cache_of_another_user_is_done_without(made, tmp_path, caplog):
    made()
    for path in (tmp_path, *tmp_path.parents[:2]):
        path.chmod(0o755)
    (tmp_path / "cache").chmod(0o700)
    os.seteuid(65534)
    try:
        folder = made()
    finally:
        os.seteuid(0)
    assert made.times == 2 and tmp_path not in folder.parents and "for this process alone" in caplog.text


def test_a_home_folder_that_nobody_has_is_no_folder():
    """pathlib raises RuntimeError for it: a traceback of the check of any path of a model."""
    assert at_home("~/model").is_absolute() and not at_home("~nobody-of-that-name/model").exists()
    with pytest.raises(InputError, match=r"model\.path: ~nobody-of-that-name/model"):
        Pretrained("~nobody-of-that-name/model").index()
