"""What `amd-plugin doctor` says of this machine, and of one with something wrong."""

import pytest
from packaging.requirements import Requirement

from amd_plugin import doctor
from amd_plugin.hookspecs import hookimpl


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def test_a_machine_that_works(cli, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret_token")
    code, printed = cli("doctor")
    assert code == 0, printed
    for what in ("torch: ", "diffusers: ", "GPU", "DeepSpeed: ", "plugin amd: active", "cache: ", "hub: does not answer"):
        assert what in printed
    assert "hf_secret_token" not in printed and "PROBLEM" not in printed


def test_a_cache_that_cannot_be_written(cli, tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.write_text("")
    monkeypatch.setenv("AMD_PLUGIN_CACHE", str(file / "cache"))
    code, printed = cli("doctor")
    assert code == 1 and "cache: PROBLEM: cannot be written" in printed
    assert str(tmp_path) not in printed


def test_a_folder_of_runs_is_none(cli, tmp_path):
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "config.yaml").write_text("{}")
    code, printed = cli("doctor", tmp_path)
    assert code == 2 and f"holds no run (no config.yaml). Name a run in it, such as {tmp_path / 'first'}" in printed


def test_libraries_that_every_command_compiles_again(monkeypatch, tmp_path):
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    monkeypatch.setattr("sys.pycache_prefix", str(tmp_path))
    assert "compileall" in next(doctor._bytecode()).found
    monkeypatch.setattr("sys.dont_write_bytecode", False)
    assert not list(doctor._bytecode())


@pytest.mark.parametrize(
    ("wanted", "ok", "said"),
    [
        ("torch>=2.6", True, "2."),
        ("torch>=999", False, ", needs >=999"),
        ("no-such-distribution>=1", False, "is not installed, needs >=1"),
    ],
)
def test_versions(wanted, ok, said):
    finding = doctor.check(Requirement(wanted))
    assert finding.ok is ok and said in finding.found


def test_a_plugin_that_failed(plugins):
    class Odd:
        @hookimpl
        def distill_rewards(self):
            return {}

    plugins.register(Odd(), "odd")
    next(status for name, status in plugins.statuses.items() if name == "odd").status = "failed"
    findings = {finding.what: finding for finding in doctor.examine(plugins)}
    assert not findings["plugin odd"].ok and findings["plugin amd"].ok
