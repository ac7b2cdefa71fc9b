"""The parts of hack/localcluster that need neither root nor a cluster."""

import ipaddress
import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest

_HACK = Path(__file__).parents[2] / "hack"
sys.path.insert(0, str(_HACK))

from localcluster import apt, cache, components, daemon, images, network, proc  # noqa: E402
from localcluster.node import Cluster  # noqa: E402


@pytest.fixture(autouse=True)
def cache_root(tmp_path, monkeypatch):
    root = tmp_path / "cache"
    monkeypatch.setenv("QISKIT_CACHE", str(root))
    return root


class TestAptSources:
    def test_one_line_form(self):
        text = (
            "# a comment\n"
            "deb [signed-by=/k.gpg] https://mirror.example/debian bookworm main\n"
            "#deb https://off.example/debian bookworm main\n"
            "deb-src https://mirror.example/debian bookworm main\n"
            "deb https://mirror.example/debian bookworm main\n"
        )
        assert apt.as_source_list(text) == (
            "deb-src [signed-by=/k.gpg] https://mirror.example/debian bookworm main\n"
            "deb-src https://mirror.example/debian bookworm main\n"
        )

    def test_deb822_form(self):
        text = (
            "Types: deb\n"
            "# a comment in the middle\n"
            "URIs: https://mirror.example/debian\n"
            "Suites: bookworm\n"
            "\n"
            "Enabled: no\n"
            "Types: deb\n"
            "URIs: https://off.example/debian\n"
            "\n"
            "# only a comment\n"
        )
        assert apt.as_source_deb822(text) == (
            "Types: deb-src\nURIs: https://mirror.example/debian\nSuites: bookworm\n"
        )


class TestFreeSubnet:
    def test_skips_what_overlaps(self):
        used = [ipaddress.IPv4Network("10.87.0.0/29"), ipaddress.IPv4Network("10.87.0.9/32")]
        assert str(network.free_subnet(0, used)) == "10.87.0.12/30"

    def test_counts_around_the_end(self):
        last = 2**14 - 1
        used = [ipaddress.IPv4Network("10.87.255.252/30")]
        assert str(network.free_subnet(last, used)) == "10.87.0.0/30"

    def test_none_left(self):
        assert network.free_subnet(0, [ipaddress.IPv4Network("10.0.0.0/8")]) is None


def test_pip_settings_environment_wins_and_paths_stay_out():
    listing = (
        "global.index-url='https://index.example/simple'\n"
        "global.find-links='/a /b'\n"
        "global.cache-dir='/somewhere'\n"
        "wheel.quiet='1'\n"
        ":env:.index-url='https://other.example/simple'\n"
    )
    assert images.pip_settings(listing) == {
        "index-url": "https://other.example/simple",
        "find-links": "/a /b",
    }


class TestProcess:
    def test_a_running_process_is_known_and_ended(self, tmp_path):
        child = subprocess.Popen(["sleep", "1000"])
        process = daemon.Process(tmp_path / "sleep.json")
        process.remember(child.pid)
        assert process.pid == child.pid
        # Someone has to reap the child for it to be gone.
        reaper = threading.Thread(target=child.wait)
        reaper.start()
        process.end(grace=5)
        reaper.join(5)
        assert child.returncode == -15
        assert process.pid is None

    @pytest.mark.parametrize("change", [{"start": 1}, {"boot": "another"}, {"pid": 0}])
    def test_a_pid_in_new_use_is_not_taken_for_it(self, tmp_path, change):
        child = subprocess.Popen(["sleep", "1000"])
        try:
            file = tmp_path / "sleep.json"
            process = daemon.Process(file)
            process.remember(child.pid)
            file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
            assert process.pid is None
            process.end()
            assert child.poll() is None
        finally:
            child.kill()
            child.wait()

    @pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"pid": "x"}'])
    def test_a_damaged_record_is_no_process(self, tmp_path, content):
        file = tmp_path / "record.json"
        file.write_text(content)
        assert daemon.Process(file).pid is None


class TestCache:
    def test_a_failed_make_leaves_nothing(self, cache_root):
        def make(out):
            (out / "half").touch()
            raise proc.ClusterError("no")

        with pytest.raises(proc.ClusterError):
            cache.product("thing", "1", make)
        assert not (cache_root / "thing/1").exists()
        assert list((cache_root / "tmp").iterdir()) == []

    def test_made_once_by_concurrent_users(self):
        made = []

        def make(out):
            made.append(out)
            (out / "file").write_text("x")

        found = []
        threads = [
            threading.Thread(target=lambda: found.append(cache.product("thing", "1", make)))
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(made) == 1
        assert {(folder / "file").read_text() for folder in found} == {"x"}
        assert len(found) == 4


class TestCluster:
    @pytest.mark.parametrize("name", ["", "A", "a/b", "-a", "a-", "x" * 31, "a_b"])
    def test_refuses_names_that_would_not_work(self, name):
        with pytest.raises(proc.ClusterError, match="cluster name"):
            Cluster(name)

    def test_says_how_to_bring_it_up(self):
        with pytest.raises(proc.ClusterError, match="hack/cluster up --name absent"):
            Cluster("absent").stop("kubelet")

    def test_names_on_the_host_fit_and_differ(self):
        one, two = Cluster("one"), Cluster("two")
        assert one._interface != two._interface
        assert len(one._interface) <= 15


def test_every_component_has_a_command():
    for name in components.NAMES:
        assert components.command(name, node="n")[0].endswith(f"/{name}")


def test_configuration_files_are_json_where_they_say_so(tmp_path):
    components.write_configuration(tmp_path, node="n", cgroup="g")
    kubelet = json.loads((tmp_path / "config/kubelet.yaml").read_text())
    assert kubelet["cgroupRoot"] == "/g"


class TestRun:
    def test_a_failure_says_what_and_shows_the_output(self):
        with pytest.raises(proc.ClusterError) as failure:
            proc.run(["sh", "-c", "echo sorry >&2; exit 3"], what="do it", hint="Try harder.")
        assert str(failure.value) == (
            "could not do it: sh ended with status 3\n    sorry\n  Try harder."
        )

    def test_a_missing_program(self):
        with pytest.raises(proc.ClusterError, match="no-such-program is not installed"):
            proc.run(["no-such-program"], what="do it")


def test_the_command_line_prints_no_traceback(cache_root):
    done = subprocess.run(
        [sys.executable, str(_HACK / "cluster"), "kubeconfig", "--name", "absent"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("hack/cluster: could not find the cluster 'absent'")
