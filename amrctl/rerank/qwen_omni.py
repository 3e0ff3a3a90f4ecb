"""`qwen2.5-omni`: a frozen audio language model hears a window and answers Yes or No.

Source: Chung-Ang University, DCASE 2026 Task 6, 2.3, with Qwen2.5-Omni (Xu et al., arXiv 2503.20215). The
answer is the probability of Yes, normalised over Yes and No, from the logits of the first answer token.
Ours: the words of the prompt (`prompt.py`), and that every spelling of Yes (Yes, yes, YES, each with and
without a space before) which the tokenizer knows as one token counts as Yes, their probabilities
summed; No alike.

The prompt is ChatML as the model's own: system turn, user turn (sound, then question), header of the
answer. The front end is the official one (16 kHz, 128 mel bands, log10, at most 300 s), except that a
sound gets one field of silence beside it, not silence up to 300 s: the same frames for a fraction of the
memory, whatever else is in the batch. One forward pass, no generation; only the last position
meets the output layer.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from amrctl import provenance
from amrctl.encoders.frozen import pick_device, pick_precision
from amrctl.encoders.hub import name_of, quietly, short
from amrctl.encoders.weights import sha256_of
from amrctl.errors import AmrctlError, FeatureError
from amrctl.progress import SILENT, Reporter
from amrctl.rerank import prompt
from amrctl.rerank.base import Candidate, VerifierError
from amrctl.rerank.qwen_weights import (
    CONFIG,
    DEFAULT,
    EXTRA,
    FRONT,
    NAME,
    TOKENIZER,
    check_tensors,
    config_of,
    folder_of,
    load,
)
from amrctl.rerank.sounds import RATE, Heard, Sounds

if TYPE_CHECKING:
    import torch

_TURN, _END, _SOUND, _BEGIN, _STOP = (
    "<|im_start|>",
    "<|im_end|>",
    "<|AUDIO|>",
    "<|audio_bos|>",
    "<|audio_eos|>",
)
_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}


class QwenOmniVerifier:
    """See the module. `weights`: a folder in the Hub's layout, or a hub name.

    Everything is checked when it is built: files, names and shapes of the tensors, tokens, device. The
    network itself is loaded with the first question. Raises `FeatureError`.
    """

    name = NAME
    version = prompt.VERSION

    def __init__(
        self,
        weights: str | None,
        sounds: Sounds,
        *,
        device: str = "auto",
        precision: str = "auto",
        report: Reporter = SILENT,
    ) -> None:
        self._sounds, self._report = sounds, report
        for option, value, known in (
            ("--device", device, ("auto", "cpu", "cuda")),
            ("--precision", precision, ("auto", *_BYTES)),
        ):
            if value not in known:
                raise AmrctlError(f"{option} {value}: there is {', '.join(known)}")
        self._device = pick_device(device)
        self.precision = pick_precision(precision, self._device)
        weights = weights or DEFAULT
        self._folder, self._weights = folder_of(weights, report), name_of(weights)
        self._config = config_of(self._folder)
        self.parameters = check_tensors(self._folder, self._config)
        self._front = self._extractor()
        self._tokenizer = self._read_tokenizer()
        self._turn, self._end, self._sound, self._begin, self._stop = map(
            self._special, (_TURN, _END, _SOUND, _BEGIN, _STOP)
        )
        self._yes, self._no = self._spellings(prompt.YES), self._spellings(prompt.NO)

    @property
    def told(self) -> str:
        """Weights, their hash, prompt and precision."""
        return f"{self._weights}, weights {self._sha256[:12]}, prompt {self.version}, {self.precision}"

    def facts(self) -> Mapping[str, Any]:
        """What provenance keeps."""
        return {
            "weights": self._weights,
            "weights_sha256": self._sha256,
            "parameters": self.parameters,
            "prompt": self.version,
            "precision": self.precision,
        }

    def fingerprint(self) -> str:
        """Weights, settings, tokenizer, precision and prompt; not the device."""
        parts = [self._sha256, self.precision, prompt.SYSTEM, prompt.QUESTION]
        for name in (CONFIG, FRONT, *TOKENIZER, *EXTRA):
            if (self._folder / name).is_file():
                parts += [name, provenance.sha256(self._folder / name)]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def evidence(self, candidate: Candidate) -> str:
        """Hash of the recording's file."""
        return self._sounds.evidence(candidate)

    def score(self, requests: Sequence[Candidate]) -> list[float]:
        """P(Yes) of each request, heard as one batch."""
        import torch

        try:
            return self._answers([(r.query, self._sounds.hear(r)) for r in requests])
        except torch.OutOfMemoryError:
            if len(requests) > 1:
                raise VerifierError("out of memory") from None
            raise AmrctlError(
                f"{NAME}: {self._device} has too little memory for one window of {requests[0].vid}; use "
                "--precision bf16, smaller weights or another --device"
            ) from None

    def _answers(self, asked: Sequence[tuple[str, Heard]]) -> list[float]:
        import torch

        with torch.inference_mode():
            network = self._network
            inputs = self._inputs(asked)
            hidden = network.model(**inputs, use_cache=False).last_hidden_state[:, -1].float()
            rows = network.lm_head.weight[[*self._yes, *self._no]].float()
            logits = (hidden @ rows.T).double().cpu()
        yes = torch.logsumexp(logits[:, : len(self._yes)], dim=1)
        no = torch.logsumexp(logits[:, len(self._yes) :], dim=1)
        return [float(p) for p in torch.sigmoid(yes - no)]

    def _inputs(self, asked: Sequence[tuple[str, Heard]]) -> dict[str, torch.Tensor]:
        """What the network takes, for a batch: texts padded on the left, sounds on the right."""
        import torch

        mels = [self._mel(heard) for _, heard in asked]
        ids = [self._ids(query, heard, m.shape[1]) for (query, heard), m in zip(asked, mels, strict=True)]
        width, frames = max(map(len, ids)), max(m.shape[1] for m in mels)
        batch = {
            "input_ids": np.full((len(ids), width), self._end, np.int64),
            "attention_mask": np.zeros((len(ids), width), np.int64),
            "input_features": np.zeros((len(ids), mels[0].shape[0], frames), np.float32),
            "feature_attention_mask": np.zeros((len(ids), frames), np.int64),
        }
        for i, (tokens, mel) in enumerate(zip(ids, mels, strict=True)):
            batch["input_ids"][i, width - len(tokens) :] = tokens
            batch["attention_mask"][i, width - len(tokens) :] = 1
            batch["input_features"][i, :, : mel.shape[1]] = mel
            batch["feature_attention_mask"][i, : mel.shape[1]] = 1
        return {key: torch.from_numpy(value).to(self._device) for key, value in batch.items()}

    def _mel(self, heard: Heard) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Log-mel frames `(bands, frames)` of one sound."""
        hop, field = self._front.hop_length, self._front.n_fft
        frames = -(-len(heard.samples) // hop)
        made = self._front(
            heard.samples,
            sampling_rate=RATE,
            padding="max_length",
            max_length=frames * hop + -(-field // hop) * hop,
            return_attention_mask=True,
            return_tensors="np",
        )
        heard_frames = made["attention_mask"][0].astype(bool)  # the silence may come before or after
        mel: np.ndarray[Any, np.dtype[np.float32]] = made["input_features"][0][:, heard_frames]
        return mel

    def _ids(self, query: str, heard: Heard, frames: int) -> list[int]:
        """The whole prompt. What stands in a query is text, also where it looks like a special token."""
        places = ((frames - 1) // 2 + 1 - 2) // 2 + 1  # of the sound, 25 a second
        asked = prompt.question(query, heard.length, heard.start, heard.end)
        text = self._text
        return [
            *(self._turn, *text(f"system\n{prompt.SYSTEM}"), self._end, *text("\n")),
            *(self._turn, *text("user\n"), self._begin, *[self._sound] * places, self._stop),
            *(*text(asked), self._end, *text("\n")),
            *(self._turn, *text("assistant\n")),
        ]

    def _text(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])

    def _spellings(self, words: Sequence[str]) -> list[int]:
        found = [self._text(before + word) for word in words for before in ("", " ")]
        single = sorted({ids[0] for ids in found if len(ids) == 1})
        if not single:
            raise FeatureError(
                f"{NAME}: the tokenizer of {self._folder} has no single token for '{words[0]}'; it is not "
                "the model's own"
            )
        return single

    def _special(self, token: str) -> int:
        found = self._tokenizer.get_vocab().get(token)
        wanted = {
            _SOUND: self._config.audio_token_id,
            _BEGIN: self._config.audio_start_token_id,
            _STOP: self._config.audio_end_token_id,
        }.get(token, found)
        if found is None or found != wanted:
            told = "does not know" if found is None else f"has number {found}, not {wanted}, for"
            raise FeatureError(f"{NAME}: the tokenizer of {self._folder} {told} the token {token}")
        return int(found)

    def _read_tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        with quietly():
            try:
                return AutoTokenizer.from_pretrained(str(self._folder), local_files_only=True)
            except Exception as error:  # each reader has its own kinds
                raise FeatureError(
                    f"{NAME}: the tokenizer of {self._folder} cannot be read ({short(error)})"
                ) from None

    def _extractor(self) -> Any:
        from transformers import WhisperFeatureExtractor

        extractor: Any = WhisperFeatureExtractor
        path = self._folder / FRONT
        wanted = {
            "sampling_rate": RATE,
            "feature_size": self._config.audio_config.num_mel_bins,
            "hop_length": RATE // 100,
            "chunk_length": round(prompt.LONGEST),
        }
        try:
            told = json.loads(path.read_text(encoding="utf-8"))
            has = {key: told[key] for key in wanted}
            with quietly():
                made = extractor.from_pretrained(str(self._folder)) if has == wanted else None
        except KeyError as error:
            raise FeatureError(f"{NAME}: {path} has no {error.args[0]}; it is not the model's own") from None
        except Exception as error:  # of files, JSON and transformers
            raise FeatureError(f"{NAME}: {path} cannot be read ({short(error)})") from None
        for key, value in wanted.items():
            if has[key] != value:
                raise FeatureError(f"{NAME}: {path} has {key} {json.dumps(has[key])}, not {value}")
        return made

    @cached_property
    def _sha256(self) -> str:
        return sha256_of(self._folder)

    @cached_property
    def _network(self) -> Any:
        import torch

        size = self.parameters * _BYTES[self.precision] / 1e9
        self._report.note(
            f"{NAME}: loading {self._weights}, {self.parameters / 1e9:.2f} billion parameters, "
            f"about {math.ceil(size)} GB in {self.precision} on {self._device}"
        )
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[self.precision]
        return load(self._folder, self._config, dtype).to(self._device)
