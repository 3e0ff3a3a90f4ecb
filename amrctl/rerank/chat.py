"""`http`: any audio language model behind an OpenAI-compatible chat completions endpoint.

The same question as `qwen2.5-omni` asks: the stretch as a base64 wav, one answer token, its most
likely alternatives with log-probabilities. The answer is the summed probability of the spellings of
Yes over that of Yes and No; a side that is not among the alternatives counts 0. Ours; the report runs its
model itself.

Only the given endpoint is contacted, redirects are not followed. The key comes from an environment
variable and is in no file, message or cache key.
"""

from __future__ import annotations

import base64
import email.utils
import http.client
import io
import json
import math
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import soundfile

from amrctl.errors import AmrctlError
from amrctl.rerank import prompt
from amrctl.rerank.base import Candidate, VerifierError
from amrctl.rerank.sounds import RATE, Heard, Sounds

ALTERNATIVES = 20  # the most that the interface allows
LARGEST = 1 << 22  # bytes of an answer that are read
AGAIN = (408, 409, 425, 429)  # and all from 500 on
HOPELESS = (401, 403, 404, 405)  # no question will fare better


class _Stay(urllib.request.HTTPRedirectHandler):
    """A redirect could carry the key and the sounds to an address that nobody named."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def checked_endpoint(endpoint: str) -> str:
    """The address that questions are sent to. `endpoint`: up to `/v1`, or the whole address.

    Raises `AmrctlError`; what could be a secret in it is not repeated.
    """
    try:
        parts = urllib.parse.urlsplit(endpoint.strip())
        host, _ = parts.hostname, parts.port  # a port that is no number raises
    except ValueError:
        parts, host = None, None
    if parts is None or parts.scheme not in ("http", "https") or not host:
        raise AmrctlError("--endpoint is no web address; write it as http://localhost:8000/v1")
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise AmrctlError(
            f"--endpoint: the address of {host} may hold no name, password or ?query, they would be stored; "
            "put the key into the environment variable that --api-key-env names"
        )
    path = parts.path.rstrip("/")
    if not path.endswith("/chat/completions"):
        path += "/chat/completions"
    return urllib.parse.urlunsplit((parts.scheme, parts.netloc, path, "", ""))


class ChatVerifier:
    """See the module. `key`: sent as a bearer token, where there is one; `timeout`: seconds a question.

    `score` may be called from several threads. Raises `AmrctlError` for an endpoint that cannot be one.
    """

    name = "http"
    version = prompt.VERSION
    parameters = None  # nobody tells

    def __init__(
        self, endpoint: str, model: str, sounds: Sounds, *, key: str | None = None, timeout: float = 120.0
    ) -> None:
        self._url, self.model = checked_endpoint(endpoint), model
        self._sounds, self._key, self._timeout = sounds, key, timeout
        if not model.strip():
            raise AmrctlError("--model is empty; write the name that the endpoint has for its model")
        if key is not None and not (key.isascii() and key.isprintable() and " " not in key):
            raise AmrctlError(
                "the key is no word of printable ASCII characters; was more copied than the key?"
            )
        self._opener = urllib.request.build_opener(_Stay)

    @property
    def host(self) -> str:
        """Scheme, host and port of the endpoint."""
        parts = urllib.parse.urlsplit(self._url)
        return f"{parts.scheme}://{parts.netloc}"

    @property
    def told(self) -> str:
        """Model, host and prompt."""
        return f"{self.model} at {self.host}, prompt {self.version}"

    def facts(self) -> Mapping[str, Any]:
        """What provenance keeps."""
        return {"endpoint": self.host, "model": self.model, "prompt": self.version}

    def fingerprint(self) -> str:
        """Address, model and prompt: what is behind a name cannot be seen."""
        return json.dumps([self._url, self.model, prompt.SYSTEM, prompt.QUESTION])

    def evidence(self, candidate: Candidate) -> str:
        """Hash of the recording's file."""
        return self._sounds.evidence(candidate)

    def score(self, requests: Sequence[Candidate]) -> list[float]:
        """P(Yes) of each request, one after the other."""
        return [self._ask(request) for request in requests]

    def _ask(self, request: Candidate) -> float:
        body = json.dumps(self.message(request.query, self._sounds.hear(request))).encode()
        return probability(self._post(body), self._safe)

    def message(self, query: str, heard: Heard) -> dict[str, Any]:
        """The request's JSON."""
        asked = prompt.question(query, heard.length, heard.start, heard.end)
        sound = {"data": base64.b64encode(_wav(heard)).decode(), "format": "wav"}
        return {
            "model": self.model,
            "messages": [
                {"role": "system", "content": prompt.SYSTEM},
                {
                    "role": "user",
                    "content": [
                        {"type": "input_audio", "input_audio": sound},
                        {"type": "text", "text": asked},
                    ],
                },
            ],
            "max_tokens": 1,
            "temperature": 0,
            "logprobs": True,
            "top_logprobs": ALTERNATIVES,
        }

    def _post(self, body: bytes) -> bytes:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        asked = urllib.request.Request(self._url, data=body, headers=headers, method="POST")
        try:
            with self._opener.open(asked, timeout=self._timeout) as answer:
                return self._read(answer)
        except urllib.error.HTTPError as error:
            with error:
                raise self._refused(error) from None
        except (OSError, http.client.HTTPException) as error:
            reason = error.reason if isinstance(error, urllib.error.URLError) else error
            if isinstance(reason, ssl.SSLCertVerificationError):
                why = self._safe(reason.verify_message)
                raise AmrctlError(
                    f"{self.host} has no certificate that this machine trusts ({why})"
                ) from None
            if isinstance(reason, TimeoutError):
                raise VerifierError(f"{self.host} did not answer within {self._timeout:g} s") from None
            told = reason.strerror if isinstance(reason, OSError) and reason.strerror else reason
            raise VerifierError(f"no connection to {self.host} ({self._safe(told)})") from None

    def _read(self, answer: Any) -> bytes:
        """The body, as far as it is of a sensible size; a server that trickles is cut off."""
        until, held = time.monotonic() + self._timeout, b""
        while piece := answer.read1(1 << 16):
            held += piece
            if len(held) > LARGEST:
                raise VerifierError(f"the answer is longer than {LARGEST:,} bytes", again=False)
            if time.monotonic() > until:
                raise TimeoutError
        length = answer.headers.get("Content-Length")
        if length and length.isdigit() and len(held) < int(length):
            raise VerifierError(f"the answer was cut off after {len(held):,} of {length} bytes")
        return held

    def _refused(self, error: urllib.error.HTTPError) -> Exception:
        """The exception for an answer that is not 200."""
        said = self._said(error)
        told = f"{self.host} answers {error.code}" + (f": {said}" if said else "")
        if 300 <= error.code < 400:
            return AmrctlError(
                f"{told}; it sends elsewhere, which is not followed; name the right --endpoint"
            )
        if error.code in (401, 403):
            sent = "the key was sent" if self._key else "no key was sent; --api-key-env names its variable"
            return AmrctlError(f"{told} ({sent})")
        if error.code in HOPELESS:
            return AmrctlError(f"{told}; are --endpoint and --model right?")
        if error.code in AGAIN or error.code >= 500:
            return VerifierError(told, after=retry_after(error.headers.get("Retry-After")))
        return VerifierError(told, again=False)

    def _said(self, error: urllib.error.HTTPError) -> str:
        """The server's own words, in one line."""
        try:
            text = error.read(1 << 14).decode("utf-8", "replace")
        except (OSError, http.client.HTTPException):
            return ""
        try:
            value = json.loads(text)
            found = value.get("error", value.get("message", value.get("detail")))
            text = found.get("message", "") if isinstance(found, dict) else found
        except (ValueError, AttributeError, RecursionError):
            pass
        return self._safe(text or "")

    def _safe(self, text: object) -> str:
        """One short printable line without the key."""
        told = str(text)
        if self._key:
            told = told.replace(self._key, "(key)")
        told = " ".join("".join(c if c.isprintable() else " " for c in told).split())
        return told if len(told) <= 200 else told[:197] + "..."


def probability(body: bytes, safe: Any = str) -> float:
    """P(Yes) from the JSON of an answer. Raises `VerifierError` for what cannot be read as one."""
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        raise VerifierError(
            f"the answer is not JSON (it begins with '{safe(body[:40].decode('utf-8', 'replace'))}')"
        ) from None
    try:
        choice = answer["choices"][0]
        logprobs = choice.get("logprobs")
    except (KeyError, IndexError, TypeError, AttributeError):
        raise VerifierError("the answer has no choices") from None
    try:
        first = logprobs["content"][0]
        listed = {
            str(one["token"]): float(one["logprob"]) for one in (first, *(first.get("top_logprobs") or ()))
        }
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        raise VerifierError(
            "the answer has no logprobs; the endpoint must give logprobs and top_logprobs", again=False
        ) from None
    if any(math.isnan(value) or value > 0.01 for value in listed.values()):
        raise VerifierError("a logprob of the answer is no logarithm of a probability")
    yes, no = (
        sum(math.exp(value) for token, value in listed.items() if token.strip() in words)
        for words in (prompt.YES, prompt.NO)
    )
    if yes + no <= 0:
        shown = ", ".join(repr(safe(token)) for token in list(listed)[:3])
        raise VerifierError(f"neither Yes nor No is among the first tokens of the answer ({shown}, ...)")
    return yes / (yes + no)


def retry_after(value: str | None) -> float:
    """Seconds that a `Retry-After` header asks for: a number, or a date; 0 where it is neither."""
    if value is None:
        return 0.0
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return 0.0
    return max(0.0, seconds) if math.isfinite(seconds) else 0.0


def _wav(heard: Heard) -> bytes:
    """16-bit mono wav at 16 kHz."""
    stream = io.BytesIO()
    soundfile.write(stream, np.clip(heard.samples, -1.0, 1.0), RATE, format="WAV", subtype="PCM_16")
    return stream.getvalue()
