"""Compiled code is loaded only from a directory that no other user can write to."""

from __future__ import annotations

import os
import pickle
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.markdown import ROOT
from tidemill.features.errors import UnsafeCache
from tidemill.features.kernel import code_cache

SOMEBODY = 54_321
COMPONENTS = ("tidemill", "tidemill/kernel", f"tidemill/kernel/{code_cache.digest()}")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home directory without a cache."""
    for name in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    code_cache.code_cache.cache_clear()
    yield tmp_path
    code_cache.code_cache.cache_clear()


def give_away(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a path belong to another user: as root by chown, else by changing our own user id."""
    if os.geteuid() == 0:
        os.chown(path, SOMEBODY, SOMEBODY, follow_symlinks=False)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: SOMEBODY)


def test_the_cache_is_the_users_alone_whatever_the_umask(home: Path) -> None:
    before = os.umask(0)
    try:
        found = code_cache.code_cache()
    finally:
        os.umask(before)
    assert found == code_cache.user_cache() / COMPONENTS[-1]
    assert found.is_relative_to(home)
    for name in COMPONENTS:
        assert stat.S_IMODE((code_cache.user_cache() / name).stat().st_mode) == 0o700


def test_the_user_chooses_another_place(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(home / "chosen"))
    assert code_cache.code_cache() == home / "chosen" / COMPONENTS[-1]


@pytest.mark.skipif(sys.platform != "linux", reason="the XDG specification is of Linux")
def test_the_xdg_directory_is_taken_where_it_is_absolute(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "xdg"))
    assert code_cache.user_cache() == home / "xdg"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert code_cache.user_cache() == home / ".cache"


@pytest.mark.parametrize("name", COMPONENTS)
@pytest.mark.parametrize("mode", [0o770, 0o702, 0o777])
def test_a_directory_that_others_can_write_to_is_refused(home: Path, name: str, mode: int) -> None:
    directory = code_cache.user_cache() / name
    directory.mkdir(parents=True)
    directory.chmod(mode)
    with pytest.raises(UnsafeCache) as refused:
        code_cache.code_cache()
    assert f"{directory} can be written to by others (mode {mode:04o})" in str(refused.value)
    assert "set NUMBA_CACHE_DIR" in str(refused.value)


@pytest.mark.parametrize("name", COMPONENTS)
def test_a_directory_of_somebody_else_is_refused(
    home: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = code_cache.user_cache() / name
    directory.mkdir(parents=True)
    directory.chmod(0o755)
    give_away(directory, monkeypatch)
    with pytest.raises(UnsafeCache, match="is a directory of user"):
        code_cache.code_cache()


def test_a_link_of_somebody_else_is_refused_and_one_of_the_users_own_is_taken(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = home / "elsewhere"
    target.mkdir(mode=0o700)
    link = code_cache.user_cache() / "tidemill"
    link.parent.mkdir()
    link.symlink_to(target)
    assert code_cache.code_cache() is not None
    assert (target / "kernel").is_dir()
    code_cache.code_cache.cache_clear()
    give_away(link, monkeypatch)
    with pytest.raises(UnsafeCache, match="is a link of user"):
        code_cache.code_cache()


def test_a_link_of_the_user_to_an_unsafe_directory_is_refused(home: Path) -> None:
    target = home / "elsewhere"
    target.mkdir()
    target.chmod(0o777)
    link = code_cache.user_cache() / "tidemill"
    link.parent.mkdir()
    link.symlink_to(target)
    with pytest.raises(UnsafeCache, match="can be written to by others"):
        code_cache.code_cache()


def test_without_a_directory_there_is_a_warning_and_no_cache(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "file").touch()
    monkeypatch.setenv("HOME", str(home / "file"))
    with pytest.warns(UserWarning, match="compiled anew in every process") as warned:
        found = [code_cache.code_cache() for _ in range(2)]
    assert found == [None, None]
    assert len(warned) == 1


def test_code_of_other_sources_goes_after_thirty_days(home: Path) -> None:
    found = code_cache.code_cache()
    assert found is not None
    old, young = found.parent / "old", found.parent / "young"
    for other in (old, young):
        other.mkdir()
        (other / "code").touch()
    os.utime(old, (0, 0))
    os.utime(found, (0, 0))
    code_cache.remove_unused(found)
    assert sorted(p.name for p in found.parent.iterdir()) == sorted([found.name, "young"])


def test_the_digest_is_of_every_source_in_every_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {source.relative_to(ROOT).as_posix() for source in code_cache.sources()}
    assert names >= {
        "features/kernel/advance.py",
        "features/kernel/exact/rounding.py",
        "features/kernel/folds/sums.py",
        "features/kernel/tiles/layout.py",
        "features/contract.py",
        "features/definitions/aggregations.py",
    }
    digests = set()
    kernel = tmp_path / "kernel"
    (kernel / "folds").mkdir(parents=True)
    (tmp_path / "definitions").mkdir()
    for name in ("contract.py", "definitions/aggregations.py", "kernel/a.py", "kernel/folds/b.py"):
        (tmp_path / name).write_text("")
    monkeypatch.setattr(code_cache, "_KERNEL", kernel)
    for name in ("", "contract.py", "definitions/aggregations.py", "kernel/folds/b.py"):
        if name:
            (tmp_path / name).write_text("changed")
        digests.add(code_cache.digest.__wrapped__())
    (kernel / "folds" / "b.py").rename(kernel / "b.py")
    digests.add(code_cache.digest.__wrapped__())
    assert len(digests) == 5


def test_code_is_kept_by_its_place_in_the_kernel_and_not_by_that_of_the_installation() -> None:
    kernel = ROOT / "tidemill" / "features" / "kernel"
    named = [
        code_cache.KernelLocator.get_suitable_cache_subpath(str(path))
        for path in (kernel / "hashing.py", kernel / "folds" / "sums.py", ROOT / "my_fold.py")
    ]
    assert named[:2] == ["kernel", "kernel_folds"]
    # A fold of somebody else's has no place in the kernel, and numba's own name.
    assert named[2].startswith(f"{ROOT.name}_")


class _Attack:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.folder),)


# A program that makes numba look for the compiled code of a small function.
_LOOK = """
import sys
from tidemill.features.kernel import hashing
cache = hashing._hash_words._cache
if len(sys.argv) > 1:
    print(cache._cache_file._index_path)
else:
    from tidemill.features.kernel.signatures import entries
    for function, signature in entries():
        if function is hashing._hash_words:
            function.compile(signature)
"""


def _look(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != "NUMBA_CACHE_DIR"}
    environment |= {"XDG_CACHE_HOME": str(home), "TMPDIR": str(home)}
    return subprocess.run(
        [sys.executable, "-c", _LOOK, *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def test_code_that_another_user_could_have_planted_does_not_run(tmp_path: Path) -> None:
    asked = _look(tmp_path, "where")
    assert asked.returncode == 0, asked.stderr
    index = Path(asked.stdout.strip())
    assert index.is_relative_to(tmp_path / "tidemill" / "kernel" / code_cache.digest())
    index.parent.mkdir(parents=True, exist_ok=True)
    ran = tmp_path / "attack ran"
    index.write_bytes(pickle.dumps(_Attack(ran)))
    # numba trusts the files in the directory, so no other user may be able to write there.
    _look(tmp_path)
    assert ran.is_dir(), "the attack is none: this test shows nothing"
    ran.rmdir()
    index.write_bytes(pickle.dumps(_Attack(ran)))
    (tmp_path / "tidemill" / "kernel" / code_cache.digest()).chmod(0o777)
    refused = _look(tmp_path)
    assert not ran.exists()
    assert refused.returncode != 0
    assert "UnsafeCache" in refused.stderr


_HASH = """
import pyarrow as pa
from tidemill.features.kernel import hashing
print(int(hashing.hash_column(pa.array([1]))[0]), hashing._hash_words._cache.cache_path)
"""


def test_the_temporary_directory_is_never_looked_into(tmp_path: Path) -> None:
    planted = tmp_path / f"tidemill-kernel-{code_cache.digest()}"
    planted.mkdir(mode=0o777)
    (tmp_path / "file").touch()
    environment = {k: v for k, v in os.environ.items() if k != "NUMBA_CACHE_DIR"}
    environment |= {"XDG_CACHE_HOME": str(tmp_path / "file"), "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            _HASH,
        ],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.stdout.split() == [str(0x5692161D100B05E5), "None"], done.stdout + done.stderr
    assert done.stderr.count("compiled anew in every process") == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", planted.name]
    assert list(planted.iterdir()) == []
    assert tempfile.gettempdir() not in str(code_cache.user_cache())
