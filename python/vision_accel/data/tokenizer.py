# SPDX-License-Identifier: Apache-2.0
"""Texts -> token ids, as the library that a checkpoint comes from makes them; on Hugging Face tokenizers."""

import gzip
import html
import json
import re
import string
from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from numpy.typing import NDArray
from tokenizers import Regex, models, normalizers, pre_tokenizers, processors, trainers

START, END = "<|startoftext|>", "<|endoftext|>"
# How open_clip's own tokenizer spells them in texts.
_OPEN_CLIP_START, _OPEN_CLIP_END = "<start_of_text>", "<end_of_text>"
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_OPENAI_VOCAB_SIZE = 49408
_CLEANS = ("none", "lower", "whitespace", "canonicalize", "siglip")


class Tokenizer:
    """Texts -> token ids [B, context_length].

    Attributes:
        context_length: tokens per text.
        vocab_size: number of ids.
        files: what to save it as, by file name.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        context_length: int,
        pad_id: int,
        *,
        clean: str = "none",
        specials: Mapping[str, int] | None = None,
        wrap: tuple[int, int] | None = None,
        blank: int | None = None,
        files: Mapping[str, bytes] | None = None,
    ) -> None:
        """Make a tokenizer; see ``from_files`` for the usual way.

        Args:
            backend: the library's tokenizer.
            context_length: tokens per text.
            pad_id: what shorter texts are filled with.
            clean: what is done to a text first, one of none, lower, whitespace, canonicalize (open_clip's
                three) and siglip (transformers').
            specials: words that are tokens by themselves where the backend does not know.
            wrap: ids put around every text where the backend does not.
            blank: an id in place of which there is 0 in the end.
            files: what to save.
        """
        if clean not in _CLEANS:
            raise ValueError(f"tokenizer: clean must be one of {', '.join(_CLEANS)}, got {clean!r}")
        self._backend = backend
        self._backend.no_padding()
        self._backend.no_truncation()
        self.context_length, self.pad_id, self.clean = context_length, pad_id, clean
        self._specials, self._wrap, self._blank = dict(specials or {}), wrap, blank
        self.files = dict(files or {})

    @property
    def vocab_size(self) -> int:
        """Number of ids."""
        return self._backend.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        """All ids of a text with its start and end, however many they are."""
        if not isinstance(text, str):
            raise TypeError(f"tokenizer: texts must be strings, got {type(text).__name__}")
        text = _clean(text, self.clean)
        if any(word in text for word in self._specials):
            ids: list[int] = []
            for word, _ in self._backend.pre_tokenizer.pre_tokenize_str(text):
                known = self._specials.get(word)
                ids += [t.id for t in self._backend.model.tokenize(word)] if known is None else [known]
        else:
            ids = self._backend.encode(text).ids
        return ids if self._wrap is None else [self._wrap[0], *ids, self._wrap[1]]

    def array(self, texts: str | Iterable[str], context_length: int | None = None) -> NDArray[np.int64]:
        """Ids [B, context_length] as a numpy array; see ``__call__``."""
        length = context_length or self.context_length
        rows = [self.encode(text) for text in ([texts] if isinstance(texts, str) else texts)]
        out = np.full((len(rows), length), self.pad_id, np.int64)
        for row, ids in zip(out, rows, strict=True):
            if len(ids) > length:
                ids = [*ids[: length - 1], ids[-1]]
            row[: len(ids)] = ids
        if self._blank is not None:
            out[out == self._blank] = 0
        return out

    def __call__(self, texts: str | Iterable[str], context_length: int | None = None) -> Any:
        """Ids of texts.

        Args:
            texts: one or many; an empty one is a start and an end.
            context_length: another length than the model's. A longer text is cut and keeps its end token.

        Returns:
            int64 tensor [B, context_length].

        Raises:
            TypeError: a text is no string.
        """
        import torch  # noqa: PLC0415  (data needs no torch otherwise)

        return torch.from_numpy(self.array(texts, context_length))

    def decode(self, ids: Iterable[int]) -> str:
        """The text of some ids; start, end and padding are left out."""
        text: str = self._backend.decode([int(i) for i in ids if i != self.pad_id], skip_special_tokens=True)
        return text.replace("</w>", " ").strip()

    @classmethod
    def from_files(
        cls, files: Mapping[str, bytes], context_length: int, open_clip: Mapping[str, Any] | None = None
    ) -> "Tokenizer":
        """From the files of a checkpoint.

        Args:
            files: name -> content of tokenizer.json, or of vocab.json and merges.txt, and of
                tokenizer_config.json.
            context_length: tokens per text.
            open_clip: ``hf_tokenizer_name`` and ``tokenizer_kwargs`` of open_clip's config, if the
                checkpoint is open_clip's: texts are then treated as it does.

        Raises:
            ValueError: no files, a damaged one, or an option that cannot be honoured.
        """
        try:
            if open_clip is not None and not open_clip.get("hf_tokenizer_name"):
                clean = _open_clip_options(open_clip, {"clean": "lower"})["clean"]
                vocab, merges = _bpe(files)
                return _simple(vocab, merges, context_length, clean, files)
            backend, config = _backend(files)
            pad = _token(config.get("pad_token")) or _token(config.get("eos_token")) or END
            pad_id = backend.token_to_id(pad)
            if pad_id is None:
                raise ValueError(f"tokenizer_config.json: pad_token {pad!r} is not in the vocabulary")
            blank = None
            if open_clip is not None:
                options = _open_clip_options(open_clip, {"clean": "whitespace", "strip_sep_token": False})
                clean = options["clean"]
                if options["strip_sep_token"]:
                    blank = backend.token_to_id(_token(config.get("sep_token")) or "[SEP]")  # BERT's
            else:
                siglip = str(config.get("tokenizer_class", "")).startswith("Siglip")
                clean = "siglip" if siglip else "none"
            return cls(backend, context_length, pad_id, clean=clean, blank=blank, files=files)
        except ValueError:
            raise
        except Exception as e:  # the library raises bare Exceptions
            raise ValueError(f"the tokenizer's files are damaged: {e}") from e

    @classmethod
    def openai(cls, context_length: int = 77) -> "Tokenizer":
        """OpenAI's vocabulary of 49408 tokens, from the file that an installed open_clip carries.

        Raises:
            ValueError: open_clip is not installed.
        """
        spec = find_spec("open_clip")
        if spec is None or spec.origin is None:
            raise ValueError(
                "no tokenizer: the checkpoint has neither tokenizer.json nor vocab.json and merges.txt, and"
                " open_clip, which carries OpenAI's vocabulary, is not installed"
            )
        packed = (Path(spec.origin).parent / "bpe_simple_vocab_16e6.txt.gz").read_bytes()
        lines = gzip.decompress(packed).decode("utf-8").split("\n")
        merges = [_pair(line) for line in lines[1 : _OPENAI_VOCAB_SIZE - 512 - 2 + 1]]
        vocab = _vocabulary(merges)
        return _simple(vocab, merges, context_length, "lower", _clip_files(vocab, merges, context_length))

    @classmethod
    def train(cls, captions: Iterable[str], vocab_size: int, context_length: int = 77) -> "Tokenizer":
        """Learn a byte-level BPE vocabulary in CLIP's form.

        Args:
            captions: the texts to learn from.
            vocab_size: number of ids, at least 514: 512 bytes, start and end. Fewer are made if the
                captions have no more repeated pairs.
            context_length: tokens per text.

        Source: Sennrich et al. 2016, arXiv:1508.07909; the form is that of Radford et al. 2021.
        """
        if vocab_size < 514:
            raise ValueError(f"tokenizer: vocab_size must be at least 514, got {vocab_size}")
        learner = _clip_backend({}, [])
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size + 512,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            end_of_word_suffix="</w>",
            show_progress=False,
        )
        learner.train_from_iterator(captions, trainer)
        learned = json.loads(learner.to_str())["model"]["merges"]
        merges = [_pair(m) if isinstance(m, str) else (m[0], m[1]) for m in learned[: vocab_size - 514]]
        vocab = _vocabulary(merges)
        backend = _clip_backend(vocab, merges)
        files = _clip_files(vocab, merges, context_length)
        return cls(backend, context_length, vocab[END], files=files)


def _pair(line: str) -> tuple[str, str]:
    first, _, second = line.strip().partition(" ")
    return first, second


def _vocabulary(merges: Sequence[tuple[str, str]]) -> dict[str, int]:
    """Token -> id in OpenAI's order: bytes, bytes that end a word, merges, start, end."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    characters = [chr(b) for b in visible] + [chr(256 + i) for i in range(256 - len(visible))]
    tokens = [*characters, *(c + "</w>" for c in characters), *(a + b for a, b in merges), START, END]
    return {token: i for i, token in enumerate(tokens)}


def _clip_backend(vocab: dict[str, int], merges: list[tuple[str, str]]) -> tokenizers.Tokenizer:
    """What transformers builds for CLIP."""
    unknown = {"unk_token": END} if vocab else {}
    backend = tokenizers.Tokenizer(
        models.BPE(vocab=vocab, merges=merges, end_of_word_suffix="</w>", fuse_unk=False, **unknown)
    )
    backend.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    backend.pre_tokenizer = _split(rf"<\|startoftext\|>|<\|endoftext\|>|{_WORDS}")
    backend.decoder = tokenizers.decoders.ByteLevel()
    if vocab:
        backend.add_special_tokens([START, END])
        ends = (END, vocab[END]), (START, vocab[START])
        backend.post_processor = processors.RobertaProcessing(
            *ends, trim_offsets=False, add_prefix_space=False
        )
    return backend


def _split(pattern: str) -> Any:
    """Only what matches is kept, and its bytes become visible characters."""
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _clip_files(vocab: dict[str, int], merges: list[tuple[str, str]], length: int) -> dict[str, bytes]:
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "bos_token": START,
        "eos_token": END,
        "pad_token": END,
        "unk_token": END,
        "model_max_length": length,
    }
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges), ""]
    return {
        "tokenizer.json": _clip_backend(vocab, merges).to_str(pretty=False).encode(),
        "vocab.json": json.dumps(vocab, ensure_ascii=False).encode(),
        "merges.txt": "\n".join(lines).encode(),
        "tokenizer_config.json": (json.dumps(config, indent=2) + "\n").encode(),
    }


def _simple(
    vocab: dict[str, int],
    merges: list[tuple[str, str]],
    context_length: int,
    clean: str,
    files: Mapping[str, bytes],
) -> Tokenizer:
    """open_clip's SimpleTokenizer over a vocabulary."""
    start, end = vocab[START], vocab[END]
    backend = tokenizers.Tokenizer(
        models.BPE(vocab=vocab, merges=merges, end_of_word_suffix="</w>", fuse_unk=False)
    )
    backend.pre_tokenizer = _split(f"(?i){_OPEN_CLIP_START}|{_OPEN_CLIP_END}|{_WORDS}")
    backend.decoder = tokenizers.decoders.ByteLevel()
    specials = {_OPEN_CLIP_START: start, _OPEN_CLIP_END: end}
    return Tokenizer(
        backend, context_length, 0, clean=clean, specials=specials, wrap=(start, end), files=files
    )


def _backend(files: Mapping[str, bytes]) -> tuple[tokenizers.Tokenizer, dict[str, Any]]:
    config = json.loads(files.get("tokenizer_config.json", b"{}"))
    if "tokenizer.json" in files:
        return tokenizers.Tokenizer.from_str(files["tokenizer.json"].decode("utf-8")), config
    if "vocab.json" in files:
        vocab, merges = _bpe(files)
        return _clip_backend(vocab, merges), config
    held = f"it has {', '.join(sorted(files))}" if files else "it has no file of one"
    raise ValueError(
        f"no tokenizer: the checkpoint needs tokenizer.json, or vocab.json and merges.txt; {held}"
    )


def _bpe(files: Mapping[str, bytes]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges, from either form."""
    if "vocab.json" in files and "merges.txt" in files:
        vocab = json.loads(files["vocab.json"])
        lines = files["merges.txt"].decode("utf-8").split("\n")
        merges = [_pair(line) for line in lines if line.strip() and not line.startswith("#version")]
    elif "tokenizer.json" in files:
        content = json.loads(files["tokenizer.json"])
        model = content["model"]
        if model.get("type", "BPE") != "BPE":
            raise ValueError(f"tokenizer.json: expected a BPE model, got {model.get('type')!r}")
        vocab = dict(model["vocab"])
        vocab |= {t["content"]: t["id"] for t in content.get("added_tokens") or []}
        merges = [_pair(m) if isinstance(m, str) else (m[0], m[1]) for m in model["merges"]]
    else:
        raise ValueError("no tokenizer: the checkpoint needs tokenizer.json, or vocab.json and merges.txt")
    missing = [t for t in (START, END) if t not in vocab]
    if missing:
        raise ValueError(f"the tokenizer's vocabulary has no {' and no '.join(missing)}")
    return vocab, merges


def _token(value: Any) -> str | None:
    """A special token in a config is a string or an object."""
    return value.get("content") if isinstance(value, dict) else value


def _open_clip_options(options: Mapping[str, Any], known: dict[str, Any]) -> dict[str, Any]:
    """The tokenizer_kwargs of open_clip's config over the defaults of those that are known."""
    arguments = options.get("tokenizer_kwargs") or {}
    unknown = {k: v for k, v in arguments.items() if k not in known}
    if unknown:
        raise ValueError(f"text_cfg.tokenizer_kwargs = {unknown} is not supported")
    return known | arguments


_PUNCTUATION = str.maketrans("", "", string.punctuation)


def _clean(text: str, kind: str) -> str:
    if kind == "none":
        return text
    if kind == "siglip":
        return re.sub(r"\s+", " ", text.lower().translate(_PUNCTUATION)).strip()
    text = " ".join(_basic_clean(text).split())
    if kind == "whitespace":
        return text
    if kind == "canonicalize":
        text = text.replace("_", " ").translate(_PUNCTUATION)
    return " ".join(text.lower().split()) if kind == "canonicalize" else text.lower()


def _basic_clean(text: str) -> str:
    """Mend broken encodings and undo HTML's escapes, as open_clip does. Plain ASCII has neither."""
    if text.isascii() and "&" not in text and text.replace("\t", " ").replace("\n", " ").isprintable():
        return text
    import ftfy  # noqa: PLC0415  (only for such texts)

    return html.unescape(html.unescape(ftfy.fix_text(text)))
