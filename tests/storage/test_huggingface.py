"""Uploads to a Hub over HTTP."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rebar.storage.huggingface import HubError, prepare_repository, upload_files
from tests.storage.hub_server import TOKEN, Hub, hub_server


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    with hub_server() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server


def test_upload_files_makes_one_commit(hub: Hub, tmp_path: Path) -> None:
    weights = tmp_path / "w"
    weights.write_bytes(bytes(range(256)) * 4000)
    prepare_repository("owner/model")
    prepare_repository("owner/model")  # it exists
    card = b"---\nmodel-index: [{name: model, results: [{metrics: [{type: accuracy, value: 76.1}]}]}]\n---\n# model\n"
    url = upload_files("owner/model", {"model.safetensors": weights, "README.md": card}, "first")
    assert url == f"{hub.url}/owner/model"
    assert hub.repositories == {"owner/model": {"model.safetensors": weights.read_bytes(), "README.md": card}}
    assert hub.messages == ["first"]


@pytest.mark.parametrize(
    ("repository", "token", "code", "status"),
    [
        ("owner/model", "hf_wrong", "hf-request-refused", "HTTP 401"),
        ("somebody/model", TOKEN, "hf-request-refused", "HTTP 403"),
        ("owner/model", "", "hf-token-missing", ""),
        ("a/b/c", TOKEN, "hf-unreachable", "a/b/c"),
    ],
)
def test_prepare_repository_reports_refusals_without_the_token(
    repository: str, token: str, code: str, status: str, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(HubError) as refused:
        prepare_repository(repository)
    assert refused.value.code == code
    assert status in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not token or token not in str(refused.value)


def test_upload_files_to_a_missing_repository(hub: Hub) -> None:
    with pytest.raises(HubError, match="HTTP 404"):
        upload_files("owner/absent", {"a.txt": b"a"}, "first")


def test_prepare_repository_without_a_connection(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(HubError, match="owner/model") as refused:
        prepare_repository("owner/model")
    assert refused.value.code == "hf-unreachable"


def test_prepare_repository_without_huggingface_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(HubError, match="pip install") as refused:
        prepare_repository("owner/model")
    assert refused.value.code == "hf-not-installed"
