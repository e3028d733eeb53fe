"""Whether there is a network, asked before TFDS tries for minutes."""

import socket
import time

import pytest

from fmjax.data import reachable, tfds_source
from fmjax.data.reachable import unreachable_hosts
from fmjax.errors import DataError


@pytest.fixture
def ports():
    """A port that is listened at, and one that is not."""
    with socket.socket() as server, socket.socket() as closed:
        server.bind(("127.0.0.1", 0))
        server.listen()
        closed.bind(("127.0.0.1", 0))
        yield server.getsockname()[1], closed.getsockname()[1]


def test_one_host_is_enough(ports, monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    there, gone = (f"http://127.0.0.1:{port}/file" for port in ports)
    assert unreachable_hosts([there]) == []
    assert unreachable_hosts([gone]) == ["127.0.0.1"]
    assert unreachable_hosts([f"https://localhost:{ports[1]}", there]) == []
    assert unreachable_hosts([f"https://localhost:{ports[1]}", gone]) == ["localhost", "127.0.0.1"]
    assert unreachable_hosts([]) == [] and unreachable_hosts(["ftp://somewhere/file"]) == []


def test_a_proxy_is_what_must_be_reachable(ports, monkeypatch):
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{ports[0]}")
    assert unreachable_hosts(["https://no.such.host.invalid/file"]) == []
    monkeypatch.setenv("https_proxy", f"127.0.0.1:{ports[1]}")
    assert unreachable_hosts(["https://no.such.host.invalid/file"]) == ["no.such.host.invalid"]


def test_a_server_that_does_not_answer_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(reachable, "_opens", lambda place, timeout: time.sleep(5))
    begin = time.monotonic()
    assert unreachable_hosts(["https://a.invalid", "https://b.invalid"], timeout=0.2) == ["a.invalid", "b.invalid"]
    assert time.monotonic() - begin < 2


@pytest.mark.parametrize("name", ["squad/v1.1", "hellaswag", "gsm8k"])
def test_without_a_network_a_tfds_dataset_is_refused_at_once(name, tmp_path, monkeypatch):
    asked = []

    def unreachable(urls):
        asked.extend(urls)
        return ["host"]

    monkeypatch.setattr(tfds_source, "unreachable_hosts", unreachable)
    with pytest.raises(DataError, match=f"'tfds:{name}' is not prepared in .* host cannot be reached within 5 s"):
        tfds_source.open_builder(f"tfds:{name}", name, str(tmp_path))
    assert all(url.startswith("https://") for url in asked) and asked


def test_a_builder_of_one_s_own_may_need_no_network(tmp_path):
    builder = tfds_source.tfds.builder("python_stdlib", data_dir=str(tmp_path))
    assert tfds_source._urls(builder) == ()


def test_a_package_that_tfds_lacks_is_named(tmp_path, monkeypatch):
    def builder(name, **options):
        try:
            raise ModuleNotFoundError("No module named 'tensorflow'", name="tensorflow")
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError("Failed to construct dataset") from error

    monkeypatch.setattr(tfds_source.tfds, "builder", builder)
    with pytest.raises(DataError, match="needs the package 'tensorflow', which is not installed"):
        tfds_source.open_builder("tfds:super_glue", "super_glue", str(tmp_path))
