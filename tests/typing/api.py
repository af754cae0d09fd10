"""The public names as a user's type checker sees them. Never run, only checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import assert_type

import rocllm


def blocking() -> None:
    with rocllm.load_model("demo", ctx_size=2048, parallel=2) as model:
        assert_type(model, rocllm.TextModel)
        assert_type(model.info, rocllm.LoadedInfo)
        stream = model.generate("Hello", max_tokens=8, temperature=0.5, stop=["\n"])
        assert_type(stream, rocllm.TokenStream)
        for token in stream:
            assert_type(token, rocllm.Token)
            assert_type(token.id, int | None)
        assert_type(stream.text, str)
        assert_type(stream.usage, rocllm.Usage | None)
        assert_type(stream.timings, rocllm.Timings | None)
        reply = model.chat([rocllm.Message("user", "Hello")]).read()
        assert_type(reply, rocllm.Completion)
        assert_type(reply.usage.total_tokens, int)
        for answer in model.batch_generate(["Hello", [rocllm.Message("user", "Hi")]], max_tokens=8):
            assert_type(answer, rocllm.BatchResult)
            assert_type(answer.text, str)
            assert_type(answer.error, rocllm.RocllmError | None)
        labelled = model.classify(iter(["Hello"]), labels={"yes": " yes", "no": " no"})
        assert_type(labelled, rocllm.Batch[rocllm.ClassifyResult])
        assert_type(next(labelled).label, str | None)
        assert_type(model.tokenize("Hello"), list[int])
        assert_type(model.detokenize([1, 2]), str)


async def asynchronous() -> None:
    async with rocllm.load_model_async("demo") as model:
        assert_type(model, rocllm.AsyncTextModel)
        async for token in model.generate("Hello"):
            assert_type(token, rocllm.Token)
        async for answer in model.batch_generate([[1, 2, 3]], ordered=False):
            assert_type(answer, rocllm.BatchResult)
        assert_type(model.classify(["Hi"], top_k=5), rocllm.AsyncBatch[rocllm.ClassifyResult])
        assert_type(await model.chat([rocllm.Message("user", "Hi")]).read(), rocllm.Completion)
    awaited = await rocllm.load_model_async("demo")
    assert_type(awaited, rocllm.AsyncTextModel)
    await awaited.aclose()


def refused() -> None:
    """What a type checker must refuse: each line would be an error without its comment."""
    model = rocllm.load_model("demo", ctx_sise=1)  # type: ignore[call-arg]
    model.generate("Hello", temprature=1.0)  # type: ignore[call-arg]
    model.chat("Hello")  # type: ignore[arg-type]
    rocllm.SamplingOptions(max_tokens="many")  # type: ignore[arg-type]


def values() -> None:
    assert_type(rocllm.discover_devices().devices, tuple[rocllm.Device, ...])
    (device,) = rocllm.discover_devices().devices
    assert_type(rocllm.vram_info(device), rocllm.VramInfo)
    assert_type(rocllm.vram_info(device).free, int | None)
    assert_type(next(rocllm.monitor([device])), tuple[rocllm.DeviceSample, ...])
    assert_type(rocllm.LoadOptions().ctx_size, int | None)
    metadata: Mapping[str, object] = rocllm.read_gguf("model.gguf").metadata
    del metadata
