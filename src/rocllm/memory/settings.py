"""What llama-server is started with, as far as memory depends on it. Pure.

The arithmetic is that of src/llama-context.cpp and src/llama-kv-cache-iswa.cpp, llama.cpp b11434.
"""

from __future__ import annotations

from dataclasses import dataclass, field

# Tokens that are computed in one go: on the device, and before the server answers anybody. On a
# CPU, where a token takes milliseconds, that is kept short (measured: cancelling takes 8 s with
# 2048, 1.8 s with 256). The others are llama.cpp's own defaults.
UBATCH_SIZE = 512
BATCH_SIZE_GPU = 2048
BATCH_SIZE_CPU = 512
# Saved states of one slot from which a conversation can go on, at most: llama.cpp's default.
MOST_CHECKPOINTS = 32
# Cells are given out in blocks of so many.
_BLOCK = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a model is loaded.

    ctx_size: tokens of one slot. parallel: slots. n_gpu_layers: layers on GPUs, counted from the
    last, where the output matrix is one more; -1: all. split: how many of these each GPU gets;
    empty with fewer than two GPUs. flash_attn: the attention is computed in one pass.
    kv_unified: the slots share one cache. swa_full: windowed layers cache all tokens.
    draft_n_max: tokens that a draft model guesses for each slot; 0: there is none.
    n_gpu_layers_draft: its layers on GPUs. companions: the files loaded beside the model.
    checkpoints: saved states of a slot, at most. They are made after loading, so that settings
        which differ in nothing else take the same memory, and are equal.
    """

    ctx_size: int
    parallel: int = 1
    n_gpu_layers: int = 0
    split: tuple[int, ...] = ()
    batch_size: int = BATCH_SIZE_GPU
    ubatch_size: int = UBATCH_SIZE
    cache_type_k: str = "f16"
    cache_type_v: str = "f16"
    flash_attn: bool = True
    kv_unified: bool = False
    swa_full: bool = False
    draft_n_max: int = 0
    n_gpu_layers_draft: int = 0
    companions: tuple[str, ...] = ()
    checkpoints: int = field(default=MOST_CHECKPOINTS, compare=False)

    @property
    def streams(self) -> int:
        """Caches side by side."""
        return 1 if self.kv_unified else self.parallel

    @property
    def cells(self) -> int:
        """Tokens that one of them holds."""
        slots = self.parallel if self.kv_unified else 1
        return slots * _padded(self.ctx_size)

    @property
    def ubatch(self) -> int:
        """Tokens computed in one go, no more than there are."""
        return min(self.ubatch_size, self.batch_size, self.cells * self.streams)

    @property
    def outputs(self) -> int:
        """Tokens of one batch whose successors are predicted: one a slot, and each guess."""
        return min(self.parallel * (1 + self.draft_n_max), self.batch_size)

    def window_cells(self, window: int) -> int:
        """Tokens that a cache for windowed layers holds."""
        if self.swa_full:
            return self.cells
        slots = self.parallel if self.kv_unified else 1
        return _padded(min(self.cells, window * slots + self.ubatch))


def _padded(tokens: int) -> int:
    return -(-tokens // _BLOCK) * _BLOCK
