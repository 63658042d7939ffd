"""A vision language model as judge: one request per sample, with a rubric, to any server with OpenAI's chat completions API.

A sample gets no score if the reply holds none within the rubric's range, or if the request fails after all retries.
The images are sent to the server; the key, if one is needed, comes from the environment and is sent nowhere else.
"""

from __future__ import annotations

import base64
import io
import json
import logging
import math
import os
import re
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Annotated, Any
from urllib.parse import urlsplit

import requests
import urllib3
from pydantic import Field
from requests.adapters import HTTPAdapter
from torch import Tensor
from urllib3.util import Retry

from amd_plugin.config import LONGEST_WAIT
from amd_plugin.errors import InputError, RunError
from amd_plugin.rewards.protocol import to_pil

log = logging.getLogger(__name__)

KEY = "AMD_PLUGIN_VLM_KEY"
LONGEST = 1 << 20  # largest reply in bytes
RUBRIC = (
    "You judge generated pictures. Below are the prompt and the picture made for it, or frames of a video in order. Judge "
    "how well it shows what the prompt asks for, and how free of visible errors it is."
)
FORMAT = 'Answer with JSON only: {{"score": NUMBER}}, where NUMBER is from 0 (worst) to {best:g} (best).'


class VLMReward:
    """A model's score divided by the best possible score, in [0, 1].

    Args:
        url: address of the server's API, up to and including /v1.
        model: name of the model on the server.
        rubric: instructions on what to judge; the format of the reply is added.
        best: best possible score; the scale starts at 0.
        frames: largest number of frames sent per video, evenly spread.
        request_timeout: largest duration of one request in seconds, from start to end.
        retries: number of retries after a request that failed or returned status 429 or 5xx.
        backoff: pause before the second retry in seconds; it doubles each time.
        concurrency: number of requests at a time.
        max_tokens: largest number of tokens of a reply.

    The environment variable AMD_PLUGIN_VLM_KEY holds the key of a server that needs one.

    Raises:
        InputError: for an invalid url, or a key that cannot be sent.
    """

    media = "pil"
    version = "1"

    def __init__(
        self,
        url: str,
        model: str,
        rubric: str = RUBRIC,
        best: Annotated[float, Field(gt=0)] = 10.0,
        frames: Annotated[int, Field(ge=1)] = 4,
        request_timeout: Annotated[float, Field(gt=0, le=LONGEST_WAIT)] = 60.0,
        retries: Annotated[int, Field(ge=0)] = 3,
        backoff: Annotated[float, Field(ge=0)] = 0.5,
        concurrency: Annotated[int, Field(ge=1)] = 8,
        max_tokens: Annotated[int, Field(ge=1)] = 64,
    ):
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.password:
            raise InputError("reward vlm: url must be http(s)://HOST[:PORT]/v1, without user or password")
        self._url, self._model, self._rubric, self._best = f"{url.rstrip('/')}/chat/completions", model, rubric, best
        self._frames, self._timeout, self._max_tokens = frames, request_timeout, max_tokens
        self._retry = Retry(
            retries, backoff_factor=backoff, status_forcelist=(429, 500, 502, 503, 504), allowed_methods=("POST",),
            redirect=0, respect_retry_after_header=False,
        )  # fmt: skip
        self._concurrency = concurrency
        _key()

    def __call__(self, media: Sequence[Any] | Tensor, prompts: Sequence[str]) -> list[float | None]:
        """One score in [0, 1] per sample; None where there is none.

        Args:
            media: PIL images, lists of PIL images for videos, or a tensor [B, C, (T,) H, W] in [0, 1].
            prompts: one prompt per sample.

        Raises:
            RunError: if every request of the batch failed.
        """
        if len(media) != len(prompts):
            raise ValueError(f"needs one prompt per sample, got {len(prompts)} for {len(media)} samples")
        shown = to_pil(media) if isinstance(media, Tensor) else media
        with requests.Session() as session, ThreadPoolExecutor(self._concurrency) as threads:
            session.trust_env = False  # a .netrc would replace the key
            for scheme in ("http://", "https://"):
                session.mount(scheme, HTTPAdapter(pool_maxsize=self._concurrency, max_retries=self._retry))
            replies = list(threads.map(partial(self._request, session), shown, prompts))
        failures = [reply for reply in replies if isinstance(reply, _Failure)]
        if failures and len(failures) == len(replies):
            raise RunError(f"{self._url} answered none of {len(replies)} requests; the first: {failures[0]}")
        scores = [None if isinstance(reply, _Failure) else read_score(reply, self._best) for reply in replies]
        if lost := sum(score is None for score in scores):
            log.warning("reward vlm: %d of %d samples got no score (%d requests failed)", lost, len(scores), len(failures))
        return scores

    def _request(self, session: requests.Session, shown: Any, prompt: str) -> str | _Failure:
        """The text of the reply for one sample."""
        body: dict[str, Any] = {
            "model": self._model, "temperature": 0, "max_tokens": self._max_tokens,
            "messages": [{"role": "user", "content": self._content(shown, prompt)}],
        }  # fmt: skip
        key = _key()
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        try:
            with session.post(
                self._url, json=body, headers=headers, timeout=self._timeout, stream=True, allow_redirects=False
            ) as response:
                if response.status_code != 200:
                    return _Failure(f"HTTP {response.status_code}")
                text = _read(response, time.monotonic() + self._timeout)
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
            return _Failure(type(error).__name__)
        try:
            reply = json.loads(text)["choices"][0]["message"]["content"]
        except (ValueError, KeyError, IndexError, TypeError, RecursionError):
            return ""
        return reply if isinstance(reply, str) else ""

    def _content(self, shown: Any, prompt: str) -> list[dict[str, Any]]:
        frames = shown if isinstance(shown, list) else [shown]
        count = min(self._frames, len(frames))
        chosen = [frames[round(i * (len(frames) - 1) / max(1, count - 1))] for i in range(count)]
        text = f"{self._rubric}\n\nPrompt: {prompt}\n\n{FORMAT.format(best=self._best)}"
        return [{"type": "text", "text": text}, *({"type": "image_url", "image_url": {"url": _data_url(i)}} for i in chosen)]


class _Failure(str):
    """The reason why a request got no reply."""


def read_score(reply: str, best: float) -> float | None:
    """The score in [0, 1] of a reply that holds ``"score": NUMBER``, or that is NUMBER or NUMBER/best; else None."""
    number = r"(-?\d+(?:\.\d+)?)"
    numbers = re.findall(rf'"score"\s*:\s*"?{number}"?\s*[,}}]', reply)
    if not numbers:
        alone = re.fullmatch(rf"\s*{number}\s*(?:/\s*{best:g})?\s*", reply)
        numbers = [alone[1]] if alone else []
    scores = {float(value) for value in numbers}
    if len(scores) != 1:
        return None
    score = scores.pop()
    return score / best if math.isfinite(score) and 0 <= score <= best else None


def _read(response: requests.Response, ends: float) -> bytes:
    """The body, if it arrives in time and is not too long: the library's own timeout is for the gap between two packets."""
    body = bytearray()
    while part := response.raw.read1(4096, decode_content=True):
        body += part
        if len(body) > LONGEST:
            raise requests.RequestException("too long")
        if time.monotonic() > ends:
            raise requests.Timeout("too slow")
    return bytes(body)


def _data_url(image: Any) -> str:
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _key() -> str:
    key = os.environ.get(KEY, "").strip()
    if not re.fullmatch(r"[!-~]*", key):
        raise InputError(f"reward vlm: the key in {KEY} has characters that cannot be sent")
    return key
