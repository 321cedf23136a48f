"""A real command meets an invalid cluster profile: a message names the file and says what to do, status 2."""

from __future__ import annotations

from scenes.project import make_project


def test_a_profile_of_nonsense(in_process, tmp_path, monkeypatch):
    """The messages about all other profiles are tested in tests/deg/options/test_cluster_profiles.py."""
    monkeypatch.setenv("DEG_CLUSTERS", str(tmp_path / "clusters"))
    (tmp_path / "clusters").mkdir()
    (tmp_path / "clusters" / "site.yaml").write_text("cluster: {partiton: gpu}\n")
    answer = in_process("check", make_project(tmp_path / "mice", {"m": 20}), "cluster=site", "--json")
    assert answer.status == answer.json["status"] == 2
    assert f"{tmp_path}/clusters/site.yaml: there is no such option. Did you mean cluster." in answer.json["error"]
