"""Fetch models from the Hugging Face Hub, into the cache that all its programs share.

`huggingface_hub` tells what is in a repository and files what was fetched in the cache. The bytes
are fetched here: version 2.4 of that library begins again after Ctrl-C or a restart (it gives each
unfinished file a name of its own and deletes it) and compares sizes, not hashes.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from rocllm import env
from rocllm.catalog.http_get import status_text
from rocllm.catalog.packaged import Progress, Stage, no_progress
from rocllm.catalog.partial import check_space, partial_size, storage_errors
from rocllm.catalog.remote_header import read_remote_model, resized
from rocllm.catalog.stores import find_hub_cache
from rocllm.catalog.transfer import Remote, fetch_file
from rocllm.catalog.variants import (
    Fit,
    RepoFile,
    Variant,
    choose_mmproj,
    choose_variant,
    list_variants,
)
from rocllm.errors import DownloadFailed, ModelFileError, ModelNotFound
from rocllm.gguf import ModelInfo, read_model_info

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo as RepoInfo

HUB_PREFIX = "hf:"
# Whether a model fits: what it says of itself, if that is known, and bytes of its files.
Judge: TypeAlias = Callable[[ModelInfo | None, int], Fit]

_REVISION = "main"
# The Hub's own rule: each part of letters, digits, `-`, `_`, `.`, without `--` and `..`.
_REPO = re.compile(r"(?!.*(?:--|\.\.))[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9_][\w.-]{0,95}", re.ASCII)
_HOW_TO = "write hf:user/repo, hf:user/repo:Q4_K_M or hf:user/repo/file.gguf"


@dataclass(frozen=True, slots=True)
class HubName:
    """What `hf:user/repo[:quant|/file]` names. wanted: the quantisation or the file."""

    repo: str
    wanted: str | None = None

    @classmethod
    def parse(cls, text: str) -> HubName:
        """Take the text apart. Raises `ModelNotFound` if it cannot name anything.

        >>> HubName.parse("hf:Qwen/Qwen3-8B-GGUF:Q4_K_M")
        HubName(repo='Qwen/Qwen3-8B-GGUF', wanted='Q4_K_M')
        """
        name = text.removeprefix(HUB_PREFIX)
        user, _, rest = name.partition("/")
        repo, separator, wanted = rest.partition("/")
        if not separator:
            repo, separator, wanted = rest.partition(":")
        if not _REPO.fullmatch(f"{user}/{repo}") or bool(separator) != bool(wanted):
            raise ModelNotFound(f"{text!r} names no model of the Hub", remedy=_HOW_TO)
        return cls(f"{user}/{repo}", wanted or None)


def pull_hub(
    name: str,
    environ: Mapping[str, str],
    *,
    judge: Judge,
    device: str,
    progress: Progress | None = None,
    chosen: Callable[[str], None] | None = None,
) -> Path:
    """Fetch a model from the Hub, with all its parts and its projector, unless it is there already.

    name: `hf:user/repo`, `hf:user/repo:QUANTIZATION` or `hf:user/repo/path/of/file.gguf`.
    environ: `HF_ENDPOINT`, `HF_TOKEN`, `HF_HUB_OFFLINE`, `HF_HOME`, … as for `huggingface_hub`.
    judge: whether a model fits into what it will run on. It is given what the model's file says of
        itself (`None`: that could not be read) and the size of all its files in bytes.
    device: what that is called. Where `name` has no quantisation, the best that fits is taken;
        `chosen` is told the reason.
    progress: as in `pull_packaged`, over all files together.

    Returns the path of the (first) file in the cache. Raises `DownloadFailed`, `ModelNotFound`,
    `DoesNotFit`.
    """
    hub = HubName.parse(name)
    repository = None if env.hub_offline(environ) else _Repository(hub.repo, environ)
    if repository is None:
        cached = _cached_files(hub.repo, environ)
        files = [RepoFile(file, path.stat().st_size) for file, path in cached.items()]
    else:
        commit, files = repository.list_files()
    variants = list_variants(files)

    @cache
    def shape() -> ModelInfo | None:
        """What one of them says of itself, and so of all: that with the fewest files to ask."""
        asked = min(variants, key=lambda variant: (len(variant.files), variant.size))
        if repository is None:
            return _read_cached(cached[asked.files[0].path])
        return repository.read_model(asked.files, commit)

    def judge_variant(variant: Variant) -> Fit:
        model = shape()
        return judge(None if model is None else resized(model, variant.size), variant.size)

    variant, reason = choose_variant(hub.repo, variants, hub.wanted, judge_variant, device)
    if reason and chosen:
        chosen(reason)
    if repository is None:
        return cached[variant.files[0].path]
    mmproj = choose_mmproj(files, variant)
    wanted = variant.files if mmproj is None else (*variant.files, mmproj)
    return repository.fetch_all(wanted, commit, progress or no_progress)


def _read_cached(path: Path) -> ModelInfo | None:
    try:
        return read_model_info(path)
    except ModelFileError:
        return None


def _shifted(progress: Progress, before: int, total: int) -> Progress:
    def report(stage: Stage, done: int, of: int | None) -> None:
        progress(stage, before + done, total) if stage == "download" else progress(stage, done, of)

    return report


def _cached_files(repo: str, environ: Mapping[str, str]) -> dict[str, Path]:
    """What the cache has of a repository, by path in it. Raises `DownloadFailed` if nothing."""
    cached: dict[str, Path] = {}
    for model in find_hub_cache(env.hub_cache(environ), repo=repo):
        for part in filter(Path.exists, model.parts):
            assert model.together is not None  # as in every snapshot
            cached.setdefault(part.relative_to(model.together).as_posix(), part)
    if not cached:
        raise DownloadFailed(
            f"{repo} is not in the cache {env.hub_cache(environ)}",
            why="HF_HUB_OFFLINE forbids to fetch it",
            remedy="unset HF_HUB_OFFLINE",
        )
    return cached


class _Repository:
    """A repository on the Hub or a mirror, and its place in the cache."""

    def __init__(self, repo: str, environ: Mapping[str, str]) -> None:
        if importlib.util.find_spec("huggingface_hub") is None:
            raise DownloadFailed(
                f"cannot fetch {repo} from the Hub",
                why="the package huggingface_hub is not installed",
                remedy="pip install 'rocllm[hub]'",
            )
        self.repo = repo
        self.endpoint = env.hub_endpoint(environ)
        self.cache = env.hub_cache(environ)
        self.token = env.hub_token(environ) or _token_in(env.hub_token_path(environ))

    def list_files(self) -> tuple[str, list[RepoFile]]:
        """The commit that is current, and the files in it that can be fetched."""
        with self._errors_in_words():
            info = self._info()
        files = [
            RepoFile(sibling.rfilename, sibling.size, sibling.lfs.sha256 if sibling.lfs else None)
            for sibling in info.siblings or ()
            if sibling.size is not None
        ]
        return info.sha or "", [file for file in files if file.is_safe]

    def _info(self) -> RepoInfo:
        from huggingface_hub import HfApi

        api = HfApi(endpoint=self.endpoint, token=self.token or False)
        return api.model_info(self.repo, revision=_REVISION, files_metadata=True)

    def read_model(self, files: Sequence[RepoFile], commit: str) -> ModelInfo | None:
        """What a model says about itself, without fetching it."""
        from huggingface_hub import hf_hub_url

        urls = [
            (hf_hub_url(self.repo, file.path, revision=commit, endpoint=self.endpoint), file.size)
            for file in files
        ]
        return read_remote_model(urls, self.token)

    def fetch_all(self, files: Sequence[RepoFile], commit: str, progress: Progress) -> Path:
        """Fetch what is not in the cache yet; returns the path of the first file there."""
        self._check_space(files)
        total = sum(file.size for file in files)
        done = 0
        paths = []
        for file in files:
            paths.append(self._fetch(file, commit, _shifted(progress, done, total)))
            done += file.size
        return paths[0]

    def _check_space(self, files: Iterable[RepoFile]) -> None:
        """Raise `DownloadFailed` unless there is room for all that is missing."""
        missing = [f for f in files if f.sha256 is None or not self._blob(f.sha256).exists()]
        with storage_errors(self.repo, self.cache):
            self.cache.mkdir(parents=True, exist_ok=True)
            there = sum(partial_size(self._blob(f.sha256)) for f in missing if f.sha256)
            check_space(self.cache, sum(file.size for file in missing) - there)

    def _blob(self, sha256: str) -> Path:
        folder = f"models--{self.repo.replace('/', '--')}"
        return self.cache / folder / "blobs" / sha256

    def _fetch(self, file: RepoFile, commit: str, report: Progress) -> Path:
        """Fetch a file, unless it is in the cache; returns its path there."""
        from huggingface_hub import hf_hub_download, hf_hub_url

        if file.sha256:
            blob = self._blob(file.sha256)
            if not blob.exists():
                url = hf_hub_url(self.repo, file.path, revision=commit, endpoint=self.endpoint)
                fetch_file(
                    Remote(
                        url=url,
                        name=file.path,
                        size=file.size,
                        sha256=file.sha256,
                        token=self.token,
                    ),
                    blob,
                    report,
                )
        report("download", file.size, file.size)
        with self._errors_in_words():
            path = hf_hub_download(
                self.repo,
                file.path,
                revision=_REVISION,
                cache_dir=self.cache,
                endpoint=self.endpoint,
                token=self.token or False,
            )
        if f"{os.sep}{commit}{os.sep}" not in path:
            raise DownloadFailed(
                f"{self.repo} has changed while it was fetched", remedy="run the same command again"
            )
        return Path(path)

    @contextmanager
    def _errors_in_words(self) -> Iterator[None]:
        import httpx2
        from huggingface_hub import errors

        what = f"cannot fetch {self.repo} from {self.endpoint}"
        try:
            yield
        except errors.GatedRepoError as exc:
            raise DownloadFailed(
                what,
                why="its publisher wants you to accept terms first",
                remedy=f"accept them at {self.endpoint}/{self.repo}, then set HF_TOKEN to a token "
                "of your account",
            ) from exc
        except errors.RepositoryNotFoundError as exc:
            raise DownloadFailed(
                what,
                why="there is no such repository, or it is private"
                + ("" if self.token else " and no token is set"),
                remedy="check the name" + ("" if self.token else ", or set HF_TOKEN"),
            ) from exc
        except errors.HfHubHTTPError as exc:
            raise DownloadFailed(
                what,
                why=f"the server says {status_text(exc.response.status_code)}",
                remedy="try again later; HF_ENDPOINT names the server, HF_TOKEN the account",
            ) from exc
        except (httpx2.HTTPError, OSError, ValueError) as exc:
            raise DownloadFailed(
                what,
                why=str(exc) or type(exc).__name__,
                remedy="check the network and HF_ENDPOINT; HF_HUB_OFFLINE=1 takes what is there",
            ) from exc


def _token_in(path: Path) -> str | None:
    try:
        return path.read_text().strip() or None
    except (OSError, ValueError):
        return None
