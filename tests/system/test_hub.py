import json
import time
from pathlib import Path

import pytest

from simcse_jax.system import hub
from simcse_jax.system.errors import UserError
from simcse_jax.system.hub import hub_file, model_folder


def test_file_of_a_model_and_of_a_data_set(hub_server):
    hub_server.add("owner/net", "config.json", "{}")
    hub_server.add("owner/net", "1_Pooling/config.json", "[1]")
    hub_server.add("owner/text", "deep/a.txt", "hello\n", kind="dataset")
    config = hub_file("owner/net", "config.json")
    pooling = hub_file("owner/net", "1_Pooling/config.json")
    text = hub_file("owner/text", "deep/a.txt", kind="dataset", revision="v1")
    assert config is not None
    assert pooling is not None
    assert text is not None
    assert text.read_text() == "hello\n"
    assert pooling.parent.parent == config.parent  # one snapshot folder
    assert not any(f"/api/{kind}s" in request for kind in ("model", "dataset") for request in hub_server.requests)
    assert "HEAD /datasets/owner/text/resolve/v1/deep/a.txt" in hub_server.requests


def test_missing_file_is_none_and_missing_repository_an_error(hub_server):
    hub_server.add("owner/net", "config.json", "{}")
    assert hub_file("owner/net", "vocab.txt") is None
    with pytest.raises(UserError, match=r"model 'owner/other' does not exist.*HF_TOKEN"):
        hub_file("owner/other", "config.json")
    with pytest.raises(UserError, match="data set 'owner/net' does not exist"):
        hub_file("owner/net", "config.json", kind="dataset")
    with pytest.raises(UserError, match="OWNER/NAME"):
        hub_file("a/b/c", "config.json")


@pytest.mark.parametrize("away", ["dead_hub", "offline_hub"])
def test_without_network_the_error_comes_soon_and_names_ways_out(away, request, monkeypatch):
    request.getfixturevalue(away)
    monkeypatch.setattr(hub, "_RETRY_WAIT_S", 0.05)
    started = time.monotonic()
    with pytest.raises(UserError, match=r"out of reach") as caught:
        hub_file("owner/net", "config.json")
    assert time.monotonic() - started < 5
    message = str(caught.value)
    for part in ("config.json", "owner/net", "local path", "HF_ENDPOINT"):
        assert part in message
    with pytest.raises(UserError, match="out of reach"):
        model_folder("owner/net")


@pytest.mark.parametrize("away", ["dead_hub", "offline_hub"])
def test_without_network_the_cache_serves(hub_server, away, request, monkeypatch):
    monkeypatch.setattr(hub, "_RETRY_WAIT_S", 0.05)
    hub_server.add("owner/net", "config.json", "{}")
    hub_server.add("owner/net", "model.safetensors", b"weights")
    folder = model_folder("owner/net")
    request.getfixturevalue(away)
    assert model_folder("owner/net") == folder
    assert hub_file("owner/net", "vocab.txt") is None  # known from the visit
    with pytest.raises(UserError, match="does not hold it"):
        hub_file("owner/net", "never-asked.txt")


def test_a_cached_file_that_has_changed_is_refused(hub_server, request):
    hub_server.add("owner/net", "model.safetensors", b"weights")
    path = hub_file("owner/net", "model.safetensors")
    assert path is not None
    path.resolve().write_bytes(b"wfights")
    for _ in range(2):  # with and without a network
        with pytest.raises(UserError, match="damaged") as caught:
            hub_file("owner/net", "model.safetensors")
        request.getfixturevalue("offline_hub")
    assert str(path.resolve()) in str(caught.value)


def test_model_folder_fetches_what_there_is(hub_server):
    places = [{"path": ""}, {"path": "1_Pooling"}, {"path": "2_Dense"}, {"path": "3_Normalize"}, {"path": "../4"}]
    files = {"config.json": "{}", "tokenizer.json": "{}", "modules.json": json.dumps(places)}
    files |= {"1_Pooling/config.json": "{}", "2_Dense/config.json": "{}", "2_Dense/model.safetensors": "weights"}
    for name, content in files.items():
        hub_server.add("owner/net", name, content)
    hub_server.add("owner/net", "pytorch_model.bin", b"weights")
    hub_server.add("owner/net", "unwanted.onnx", b"big")
    folder = model_folder("owner/net")
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert found == {*files, "pytorch_model.bin"}


@pytest.mark.parametrize("sharded", [False, True])
def test_model_folder_of_an_old_release(hub_server, sharded: bool):
    """Its encoder and tokenizer are in the folder of the Transformer module."""
    modules = {"0_Transformer": "x.Transformer", "1_Pooling": "x.Pooling"}
    entries = [{"path": place, "type": kind} for place, kind in modules.items()]
    weights = ("model.safetensors.index.json", "model-1-of-1.safetensors") if sharded else ("pytorch_model.bin",)
    of_encoder = ("config.json", "vocab.txt", "sentence_bert_config.json", *weights)
    index = json.dumps({"weight_map": {"a": "model-1-of-1.safetensors"}})
    files = {f"0_Transformer/{name}": index for name in of_encoder}
    files |= {"modules.json": json.dumps(entries), "1_Pooling/config.json": "{}"}
    for name, content in files.items():
        hub_server.add("owner/net", name, content)
    for _ in range(2):
        folder = model_folder("owner/net")
        assert {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} == {*files}
    (hub_server.root / "owner/net/0_Transformer/config.json").unlink()
    with pytest.raises(UserError, match=r"has no 0_Transformer/config\.json"):
        model_folder("owner/net")


def test_an_adapter_needs_no_config_and_no_weights_of_a_model(hub_server):
    hub_server.add("owner/net", "adapter_config.json", "{}")
    with pytest.raises(UserError, match=r"none of adapter_model\.safetensors"):
        model_folder("owner/net")
    hub_server.add("owner/net", "adapter_model.safetensors", b"weights")
    assert (model_folder("owner/net") / "adapter_model.safetensors").read_bytes() == b"weights"


def test_model_folder_fetches_shards(hub_server):
    index = {"weight_map": {"a": "model-1-of-2.safetensors", "b": "model-2-of-2.safetensors"}}
    hub_server.add("owner/net", "config.json", "{}")
    hub_server.add("owner/net", "model.safetensors.index.json", json.dumps(index))
    hub_server.add("owner/net", "model-1-of-2.safetensors", b"1")
    with pytest.raises(UserError, match=r"lacks model-2-of-2\.safetensors"):
        model_folder("owner/net")
    hub_server.add("owner/net", "model-2-of-2.safetensors", b"2")
    assert (model_folder("owner/net") / "model-2-of-2.safetensors").read_bytes() == b"2"


def test_model_without_weights_or_config(hub_server):
    hub_server.add("owner/net", "README.md", "x")
    with pytest.raises(UserError, match=r"has no config\.json"):
        model_folder("owner/net")
    hub_server.add("owner/net", "config.json", "{}")
    with pytest.raises(UserError, match=r"none of model\.safetensors, pytorch_model\.bin"):
        model_folder("owner/net")
    assert (model_folder("owner/net", weights=False) / "config.json").is_file()


def test_local_folder_is_taken_as_it_is(tmp_path: Path, dead_hub):
    assert model_folder(str(tmp_path)) == tmp_path


@pytest.mark.parametrize("name", ["./nowhere", "~/no-such-folder", "/no/such/folder", "runs/demo/model"])
def test_path_like_name_that_does_not_exist(name, dead_hub):
    with pytest.raises(UserError, match="does not exist") as caught:
        model_folder(name)
    assert name in str(caught.value)


def test_file_instead_of_a_folder(tmp_path: Path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"")
    with pytest.raises(UserError, match="is a file"):
        model_folder(str(path))
