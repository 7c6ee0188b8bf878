# SPDX-License-Identifier: Apache-2.0
"""Token ids are those of transformers and of open_clip."""

import json
import random

import numpy as np
import pytest
import torch

import vision_accel as va
from tests import reference_libs
from vision_accel.data.tokenizer import END, START, Tokenizer

WORDS = """
    a photo of the dog's cat running on 3 mountains; it's they'll 2024 don't Zürich naïve ÉCOLE ﬁne ①② 東京
    日本語
    смотри עברית हिन्दी 한국어 🐶 👩‍👩‍👧‍👦 🇩🇪 &amp; &lt;b&gt; &amp;amp; &eacute; … “quoted” ‘single’ --
    _under_score_ www.x.org/a?b=c
    e\u0301 ſ İ ß ǅ \u200b \u00a0 \x07 \t \n <|endoftext|> <|startoftext|> <start_of_text> <end_of_text>
    !!! ;) #tag @me 100%
    CamelCase UPPER x86_64 schÃ¶n \ufeff ½ ² 'S 'RE ''s
""".split(" ")  # noqa: SIM905  (one space: tabs and odd spaces are words here)


def texts(count=3000):
    rng = random.Random(0)
    found = ["", " ", "a", "\n", "a " * 200, "🐶" * 90, *WORDS]
    while len(found) < count:
        kind = rng.random()
        if kind < 0.7:
            found.append(
                rng.choice(["", " ", "  "]).join(rng.choice(WORDS) for _ in range(rng.randint(1, 12)))
            )
        elif kind < 0.85:
            found.append("".join(chr(rng.randint(32, 0x2FF)) for _ in range(rng.randint(1, 30))))
        else:
            points = (
                rng.choice([rng.randint(0x20, 0xD7FF), rng.randint(0x1F300, 0x1FAFF)]) for _ in range(9)
            )
            found.append("".join(map(chr, points)))
    return found


def assert_same(ours, theirs, samples):
    wrong = [(s, a, b) for s, a, b in zip(samples, ours.tolist(), theirs.tolist(), strict=True) if a != b]
    assert not wrong, f"{len(wrong)} of {len(samples)} differ, first {wrong[0]}"


@pytest.fixture(scope="module")
def openai():
    reference_libs.open_clip()
    return Tokenizer.openai()


@pytest.mark.parity
@pytest.mark.parametrize("length", [77, 8])
def test_open_clips_ids(openai, length):
    theirs = reference_libs.open_clip().get_tokenizer("ViT-B-32")
    samples = texts()
    assert_same(openai(samples, length), theirs(samples, length), samples)
    assert openai.vocab_size == 49408
    assert openai("a photo of a dog")[0, :7].tolist() == [49406, 320, 1125, 539, 320, 1929, 49407]


@pytest.mark.parity
@pytest.mark.parametrize("form", ["tokenizer.json", "vocab.json"])
def test_transformers_ids(openai, form, tmp_path):
    hf = reference_libs.transformers()
    files = openai.files
    names = ["tokenizer.json"] if form == "tokenizer.json" else ["vocab.json", "merges.txt"]
    for name in [*names, "tokenizer_config.json"]:
        (tmp_path / name).write_bytes(files[name])
    theirs = hf.CLIPTokenizer.from_pretrained(tmp_path)
    ours = Tokenizer.from_files({f.name: f.read_bytes() for f in tmp_path.iterdir()}, 77)
    samples = texts()
    expected = theirs(samples, padding="max_length", truncation=True, max_length=77, return_tensors="pt")
    assert_same(ours(samples), expected.input_ids, samples)


@pytest.mark.parity
def test_trained_vocabulary(tmp_path):
    """Learned from captions, saved with the model, and the same in transformers."""
    rng = random.Random(1)
    captions = [" ".join(rng.choice(WORDS[:14]) for _ in range(8)) for _ in range(300)]
    tokenizer = Tokenizer.train(captions, 600, 20)
    assert tokenizer.vocab_size <= 600
    ids = tokenizer(captions)
    assert int(ids.max()) == tokenizer.vocab_size - 1  # the end token: what argmax pools at
    assert ids.shape == (300, 20)
    assert tokenizer.decode(tokenizer("the dog's cat").tolist()[0]) == "the dog 's cat"
    assert len(tokenizer.encode("the photo")) < 2 + len("the photo")  # something was merged
    again = Tokenizer.train(captions, 600, 20)
    assert np.array_equal(again.array(captions), tokenizer.array(captions))

    model = va.create_model("test_clip", context_length=20, **{"text.vocab_size": tokenizer.vocab_size})
    model.tokenizer = tokenizer
    samples = texts(500)
    va.save(model, tmp_path)
    assert torch.equal(va.load(tmp_path).tokenizer(samples), tokenizer(samples))
    theirs = reference_libs.transformers().AutoTokenizer.from_pretrained(tmp_path)
    expected = theirs(samples, padding="max_length", truncation=True, max_length=20, return_tensors="pt")
    assert_same(tokenizer(samples), expected.input_ids, samples)
    va.save(model, tmp_path / "b", layout="open_clip")
    assert (
        va.load(tmp_path / "b").tokenizer("the cat")[0, :2].tolist() == tokenizer("the cat")[0, :2].tolist()
    )


def test_siglip_cleans_texts():
    """What SiglipTokenizer does to a text before it looks words up."""
    tokenizer = Tokenizer.train(["a dog runs"] * 5, 530, 8)
    config = json.loads(tokenizer.files["tokenizer_config.json"]) | {"tokenizer_class": "SiglipTokenizer"}
    files = tokenizer.files | {"tokenizer_config.json": json.dumps(config).encode()}
    siglip = Tokenizer.from_files(files, 8)
    assert siglip.clean == "siglip"
    assert torch.equal(siglip("  A DOG,\n runs!? "), tokenizer("a dog runs"))


@pytest.mark.parity
def test_bert_in_open_clip(tmp_path):
    """What CLIPA's checkpoints have: BERT's words, and 0 in place of the separator."""
    hf = reference_libs.transformers()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz", "##s", "dog", "a"]
    vocab = {word: i for i, word in enumerate(dict.fromkeys(words))}
    hf.BertTokenizer(vocab=vocab).save_pretrained(tmp_path)
    files = {f.name: f.read_bytes() for f in tmp_path.iterdir()}
    options = {"hf_tokenizer_name": str(tmp_path), "tokenizer_kwargs": {"strip_sep_token": True}}
    ours = Tokenizer.from_files(files, 8, options)
    theirs = reference_libs.open_clip().tokenizer.HFTokenizer(str(tmp_path), 8, strip_sep_token=True)
    samples = ["a dog", "dogs &amp; A DOG", "", "a b c d e f g h i j k", "[SEP] é"]
    assert_same(ours(samples), theirs(samples), samples)


def test_missing_and_bad(tmp_path):
    model = va.create_model("test_clip")
    with pytest.raises(ValueError, match=r"no tokenizer: set model.tokenizer"):
        model.tokenizer  # noqa: B018
    va.save(model, tmp_path)
    with pytest.raises(ValueError, match=r"no tokenizer: the checkpoint needs tokenizer.json, or vocab.json"):
        va.load(tmp_path).tokenizer  # noqa: B018
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match="tokenizer's files are damaged"):
        va.load(tmp_path).tokenizer  # noqa: B018
    with pytest.raises(ValueError, match="vocab_size must be at least 514"):
        Tokenizer.train([], 100)
    empty = Tokenizer.train([], 600)
    assert empty.vocab_size == 514
    assert empty("").tolist()[0][:3] == [512, 513, 513]
    with pytest.raises(TypeError, match="texts must be strings, got int"):
        empty([3])
    with pytest.raises(ValueError, match="makes 514 ids, but the text tower has vocab_size 512"):
        model.tokenizer = empty
    with pytest.raises(ValueError, match=r"vocabulary has no <.startoftext"):
        Tokenizer.from_files({"vocab.json": b"{}", "merges.txt": b""}, 7)
    with pytest.raises(ValueError, match="strip_sep_token"):
        Tokenizer.from_files(empty.files, 7, {"tokenizer_kwargs": {"strip_sep_token": True}})
    assert (START, END) == ("<|startoftext|>", "<|endoftext|>")
