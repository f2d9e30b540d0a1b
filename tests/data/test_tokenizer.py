import json
import os
import shutil
import subprocess
import sys

import pytest

from simcse_jax.data.tokenizer import SPECIAL_TOKENS, load_tokenizer, train_wordpiece
from simcse_jax.system.errors import UserError

ENGLISH = [
    "A man is playing a guitar.",
    "A woman plays the guitar.",
    "The men are playing.",
    "Héllo, playing!",
]
KOREAN = ["한 남자가 기타를 치고 있다.", "남자가 노래를 하고 있다.", "여자가 기타를 치고 있다."]
CHINESE = ["一个男人在弹吉他。", "一个女人在唱歌。", "男人在唱歌。"]


def test_trained_wordpiece_loads_everywhere(tmp_path):
    from tokenizers import Tokenizer

    train_wordpiece(ENGLISH * 5, 80, tmp_path)
    vocab = (tmp_path / "vocab.txt").read_text(encoding="utf-8").splitlines()
    assert vocab[:5] == list(SPECIAL_TOKENS)
    assert len(vocab) == len(set(vocab)) <= 80
    assert "playing" in vocab

    ours = load_tokenizer(tmp_path)
    ids = ours("The man is playing; Hello")["input_ids"]
    assert ids[0] == ours.cls_token_id == 2
    assert ids[-1] == ours.sep_token_id == 3
    assert ours.pad_token_id == 0
    assert str(ours.decode(ids, skip_special_tokens=True)).startswith("the man is playing")
    assert Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode("The man is playing; Hello").ids == ids
    (tmp_path / "tokenizer.json").unlink()  # what vocab.txt and the settings alone give is the same
    assert load_tokenizer(tmp_path)("The man is playing; Hello")["input_ids"] == ids


@pytest.mark.parametrize("sentences", [KOREAN, CHINESE])
def test_wordpiece_of_other_scripts(tmp_path, sentences):
    train_wordpiece(sentences * 5, 400, tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    for sentence in sentences:
        ids = tokenizer(sentence)["input_ids"]
        assert tokenizer.unk_token_id not in ids
        assert len(ids) > 4


def test_wordpiece_drops_rare_characters_rather_than_exceed_its_size(tmp_path):
    train_wordpiece([chr(0x4E00 + i) + "人" for i in range(500)], 100, tmp_path)
    vocab = (tmp_path / "vocab.txt").read_text(encoding="utf-8").splitlines()
    assert len(vocab) <= 100
    assert "人" in vocab


def test_wordpiece_is_the_same_in_every_process(tmp_path):
    program = (
        "import sys; from simcse_jax.data.tokenizer import train_wordpiece\n"
        "words = [f'{a}{b}{c} {c}{a}' for a in 'abcdefgh' for b in 'éíxyz' for c in 'klmnop']\n"
        "train_wordpiece(words, 120, sys.argv[1])\n"
    )
    files = []
    for run in range(3):
        out = tmp_path / str(run)
        environment = {**os.environ, "PYTHONHASHSEED": str(run), "PYTHONPATH": os.pathsep.join(sys.path)}
        subprocess.run([sys.executable, "-c", program, str(out)], check=True, env=environment)
        files.append([(out / name).read_bytes() for name in ("tokenizer.json", "vocab.txt")])
    assert files[0] == files[1] == files[2]


def test_wordpiece_needs_text_and_room(tmp_path):
    with pytest.raises(UserError, match="No text"):
        train_wordpiece(["", " "], 100, tmp_path)
    with pytest.raises(UserError, match="vocabulary of 3 tokens is too small"):
        train_wordpiece(ENGLISH, 3, tmp_path)


def test_bert_base_uncased(real_data, tmp_path):
    source = real_data / "vocab" / "bert-base-uncased"
    expected = [101, 7592, 2088, 102]
    for names in (
        ["config.json", "tokenizer.json", "vocab.txt"],
        ["config.json", "vocab.txt"],
        ["config.json", "tokenizer.json"],
        ["vocab.txt"],
        ["tokenizer.json"],
    ):
        folder = tmp_path / "-".join(names)
        folder.mkdir()
        for name in names:
            shutil.copy(source / name, folder)
        tokenizer = load_tokenizer(folder)
        assert tokenizer("Hello wörld")["input_ids"] == expected, names
        assert (tokenizer.pad_token_id, tokenizer.cls_token_id, tokenizer.sep_token_id) == (0, 101, 102)


def test_roberta(real_data, tmp_path):
    for names in (["config.json", "vocab.json", "merges.txt"], ["vocab.json", "merges.txt"]):
        folder = tmp_path / "-".join(names)
        folder.mkdir()
        for name in names:
            shutil.copy(real_data / "vocab" / "roberta" / name, folder)
        tokenizer = load_tokenizer(folder)
        assert tokenizer("Hello world")["input_ids"] == [0, 31414, 232, 2], names
        assert (tokenizer.pad_token_id, tokenizer.cls_token_id, tokenizer.sep_token_id) == (1, 0, 2)
        assert tokenizer.decode(tokenizer("你好 세계")["input_ids"], skip_special_tokens=True) == "你好 세계"


@pytest.mark.slow
def test_no_torch_is_needed(tmp_path):
    train_wordpiece(ENGLISH, 80, tmp_path)
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "from simcse_jax.data.tokenizer import load_tokenizer\n"
        "assert 'transformers' not in sys.modules\n"
        "print(load_tokenizer(sys.argv[1])('The man')['input_ids'][0])\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], check=True, env=environment, capture_output=True, text=True
    )
    assert (done.stdout.strip(), done.stderr.strip()) == ("2", "")


def test_missing_and_broken_files(tmp_path):
    with pytest.raises(UserError, match=r"folder '.*nowhere' does not exist"):
        load_tokenizer(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UserError, match=r"holds no tokenizer(.|\n)*vocab\.txt(.|\n)*found: config\.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0", "trunc')
    with pytest.raises(UserError, match="does not load"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("name", ["sentencepiece.bpe.model", "spm.model"])
def test_a_sentencepiece_model_alone_asks_for_its_package(tmp_path, monkeypatch, name):
    (tmp_path / "config.json").write_text('{"model_type": "deberta-v2"}')
    (tmp_path / name).write_bytes(b"model")
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(UserError, match=rf"{name} only[\s\S]*`pip install sentencepiece`"):
        load_tokenizer(tmp_path)


def test_tokenizer_without_special_tokens(tmp_path):
    from tokenizers import Tokenizer, models

    Tokenizer(models.WordLevel({"a": 0, "?": 1}, unk_token="?")).save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    with pytest.raises(UserError, match="has no pad_token, cls_token, sep_token"):
        load_tokenizer(tmp_path)
