"""The jars of Kafka: locked, fetched whole from the user's repositories, checked at every use."""

from __future__ import annotations

import base64
import hashlib
import re
import shutil
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from locks.jars import FLINK_ROOTS, ROOTS, resolved
from tests.support.markdown import ROOT
from tidemill.features.errors import JarsMissing, WrongJar
from tidemill.pipelines.servers import fetching, jars
from tidemill.pipelines.servers.fetching import fetch, fetch_with_jgo, fetch_with_maven
from tidemill.pipelines.servers.jars import check, fetched_jars
from tidemill.pipelines.servers.locked_jars import FLINK, KAFKA, Jar, JarLock

LOCKED = KAFKA.jars()


@pytest.fixture
def real() -> Path:
    """The folder of the real jars."""
    return fetched_jars(KAFKA)[0].parent


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, in which nothing is fetched yet."""
    monkeypatch.setattr(jars, "_cache", lambda: tmp_path / "cache")
    return tmp_path / "cache"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home without settings, and with an empty Maven repository."""
    home = tmp_path / "home"
    (home / ".m2").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    for name in ("M2_REPO", "JGO_CONFIG_FILE", "JGO_CACHE_DIR", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    return home


def copied(real: Path, wanted: Sequence[Jar], folder: Path) -> None:
    """Stand in for a repository, so that a test needs no network."""
    for jar in wanted:
        shutil.copyfile(real / jar.name, folder / jar.name)


def test_the_lock_has_every_jar_once_with_its_hash() -> None:
    assert len(LOCKED) == len({jar.name for jar in LOCKED}) == 46
    assert set(ROOTS) <= {str(jar) for jar in LOCKED}
    assert all(re.fullmatch("[0-9a-f]{64}", jar.sha256) for jar in LOCKED)


def test_the_lock_of_flink_has_every_jar_once_with_its_hash() -> None:
    locked = FLINK.jars()
    assert len(locked) == len({jar.name for jar in locked}) == 162
    assert set(FLINK_ROOTS) <= {str(jar) for jar in locked}
    assert all(re.fullmatch("[0-9a-f]{64}", jar.sha256) for jar in locked)


def test_the_lock_is_what_jgo_resolves(tmp_path: Path) -> None:
    """`python -m locks.jars` would write the same coordinates again."""
    locked = {(jar.group, jar.artifact, jar.version) for jar in LOCKED}
    assert set(resolved(tmp_path)) == locked


def test_without_maven_jgo_downloads_every_locked_jar(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the network, as on a machine on which nothing was fetched before."""
    nothing = tmp_path / "nothing"
    nothing.mkdir()
    monkeypatch.setenv("PATH", str(nothing))
    monkeypatch.setattr(fetching, "local_repository", lambda _: nothing)
    folder = tmp_path / "jars"
    folder.mkdir()
    fetch(LOCKED, folder)
    assert len(check(LOCKED, folder)) == 46
    assert {path.name for path in folder.iterdir()} == {jar.name for jar in LOCKED}


def test_a_jar_with_another_hash_is_named_and_kept(
    real: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jars, "fetch", partial(copied, real))
    found = fetched_jars(KAFKA)
    found[5].write_bytes(found[5].read_bytes() + b"x")
    with pytest.raises(WrongJar, match=re.escape(f"{found[5]} is not the locked {LOCKED[5]}")):
        fetched_jars(KAFKA)
    assert found[5].read_bytes().endswith(b"x")
    found[5].unlink()
    with pytest.raises(WrongJar, match=f"lacks {LOCKED[5].name}"):
        fetched_jars(KAFKA)


def test_a_repository_that_gives_another_jar_leaves_nothing_behind(
    real: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forged(wanted: Sequence[Jar], folder: Path) -> None:
        copied(real, wanted, folder)
        (folder / wanted[-1].name).write_bytes(b"PK forged")

    monkeypatch.setattr(jars, "fetch", forged)
    with pytest.raises(WrongJar, match=LOCKED[-1].name):
        fetched_jars(KAFKA)
    assert list(cache.iterdir()) == []


def test_two_that_fetch_at_once_both_get_whole_jars(
    real: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = threading.Barrier(2)

    def slow(wanted: Sequence[Jar], folder: Path) -> None:
        together.wait(60)
        copied(real, wanted, folder)
        together.wait(60)

    monkeypatch.setattr(jars, "fetch", slow)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: fetched_jars(KAFKA), range(2))
    assert first == second
    assert [path.name for path in cache.iterdir()] == [first[0].parent.name]


def test_other_jars_have_another_folder(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = jars.jars_folder(KAFKA)
    changed = tmp_path / "kafka_jars.lock"
    changed.write_text(KAFKA.path.read_text().replace("4.1.1", "4.1.2"))
    assert jars.jars_folder(JarLock("Kafka", changed)) != before
    assert jars.jars_folder(FLINK) != before


def test_they_are_in_the_checkout_else_in_the_users_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert jars.jars_folder(KAFKA).parent == ROOT / ".tidemill"
    monkeypatch.setattr(jars, "_REPOSITORY", tmp_path / "site-packages" / "tidemill")
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert jars.jars_folder(KAFKA).parent == tmp_path / "cache" / "tidemill"


# Where they come from


@pytest.fixture
def mirror(tmp_path: Path) -> Iterator[str]:
    """A mirror with two small jars, for a user with a password; yields its URL."""
    place = tmp_path / "mirror"
    for jar in SMALL:
        file = place.joinpath(*jar.group.split("."), jar.artifact, jar.version, jar.name)
        file.parent.mkdir(parents=True)
        file.write_bytes(content(jar))
    expected = "Basic " + base64.b64encode(b"me:p@ss/word").decode()

    class Handler(SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.headers["Authorization"] == expected:
                super().do_GET()
            else:
                self.send_error(401)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(place))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def content(jar: Jar) -> bytes:
    return f"the bytes of {jar.name}".encode()


def small(artifact: str) -> Jar:
    jar = Jar("org.example", artifact, "1.0", "")
    return Jar(jar.group, artifact, "1.0", hashlib.sha256(content(jar)).hexdigest())


SMALL = (small("one"), small("two"))


def settings(url: str, password: str = "p@ss/word") -> str:
    return (
        '<settings xmlns="http://maven.apache.org/SETTINGS/1.2.0"><mirrors><mirror><id>ours</id>'
        f"<url>{url}/</url><mirrorOf>*</mirrorOf></mirror></mirrors><servers><server>"
        f"<id>ours</id><username>me</username><password>{password}</password></server></servers>"
        "</settings>"
    )


def test_jgo_asks_the_mirror_of_the_maven_settings_with_its_password(
    home: Path, mirror: str, tmp_path: Path
) -> None:
    (home / ".m2" / "settings.xml").write_text(settings(mirror))
    folder = tmp_path / "jars"
    folder.mkdir()
    assert fetch_with_jgo(SMALL, folder) is None
    check(SMALL, folder)
    assert {path.name for path in folder.iterdir()} == {jar.name for jar in SMALL}
    # Nothing is written where Maven keeps its own.
    assert [path.name for path in (home / ".m2").iterdir()] == ["settings.xml"]


def test_a_jar_of_the_local_repository_is_copied(home: Path, tmp_path: Path, mirror: str) -> None:
    (home / ".m2" / "settings.xml").write_text(settings("http://127.0.0.1:1"))
    shutil.copytree(tmp_path / "mirror", home / ".m2" / "repository")
    folder = tmp_path / "jars"
    folder.mkdir()
    assert fetch_with_jgo(SMALL, folder) is None
    check(SMALL, folder)


def test_what_maven_and_jgo_say_is_in_the_error_and_no_password(
    home: Path, mirror: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / ".m2" / "settings.xml").write_text(settings(mirror, password="wrong-s3cret"))
    program(tmp_path, monkeypatch, "echo no such plugin; exit 7")
    folder = tmp_path / "jars"
    folder.mkdir()
    with pytest.raises(JarsMissing) as error:
        fetch(SMALL, folder)
    said = str(error.value)
    assert "mvn failed with status 7: no such plugin" in said
    assert "jgo cannot fetch org.example:one:1.0" in said
    assert "s3cret" not in said


def test_maven_is_asked_for_exactly_the_locked_jars(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine may have no Maven: a program in its place shows what it would be asked."""
    maven = program(
        tmp_path,
        monkeypatch,
        'while [ "$1" != --file ]; do shift; done; cp "$2" $0.pom; echo "$@" > $0.words',
    )
    folder = tmp_path / "jars"
    folder.mkdir()
    assert fetch_with_maven(str(maven), SMALL, folder) is None
    project = Path(f"{maven}.pom").read_text()
    names = re.findall("<artifactId>(.*?)</artifactId><version>(.*?)</version>", project)
    assert names == [("servers", "1"), ("one", "1.0"), ("two", "1.0")]
    words = Path(f"{maven}.words").read_text().split()
    assert words[2:] == [
        "dependency:copy-dependencies",
        "-DexcludeTransitive=true",
        f"-DoutputDirectory={folder}",
    ]
    assert list(folder.iterdir()) == []


def program(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> Path:
    """Put a program ``mvn`` on the PATH, before all others."""
    place = folder / "programs"
    place.mkdir()
    maven = place / "mvn"
    maven.write_text(f"#!/bin/sh\n{script}\n")
    maven.chmod(0o755)
    monkeypatch.setenv("PATH", f"{place}:/usr/bin:/bin")
    return maven
