"""The two clients of a vLLM server: those of llama-server, in vLLM's words."""

from __future__ import annotations

from collections.abc import Sequence

from rocllm.backends.vllm import wire
from rocllm.client import AsyncClient, AsyncTokenStream, Client, TokenStream
from rocllm.options import SamplingOptions
from rocllm.results import Message, NextToken

_DEFAULT_SAMPLING = SamplingOptions()


class VllmClient(Client):
    """Talks to a running vLLM server; for blocking callers, several threads at once.

    What llama-server alone knows (`props`, `slots`, `share_prefix`) is not there: vLLM keeps the
    beginnings that prompts have in common by itself.
    """

    def tokenize(
        self, text: str, *, add_special: bool = False, parse_special: bool = True
    ) -> list[int]:
        """The token ids of a text."""
        wire.check_parse_special(parse_special)
        tokens: list[int] = self._ask(wire.tokenize(text, add_special=add_special))
        return tokens

    def detokenize(self, tokens: Sequence[int]) -> str:
        """The text of token ids."""
        text: str = self._ask(wire.detokenize(tokens))
        return text

    def apply_template(self, messages: Sequence[Message]) -> str:
        """The prompt that the model's chat template makes of a conversation."""
        return self.detokenize(self._ask(wire.tokenize_chat(messages)))

    def completion(
        self,
        prompt: str | Sequence[int],
        sampling: SamplingOptions = _DEFAULT_SAMPLING,
        *,
        resume: bool = False,
    ) -> TokenStream:
        """Continue a prompt, given as text or token ids."""
        return TokenStream(self, wire.completion(prompt, sampling, resume=resume))

    def chat(
        self,
        messages: Sequence[Message],
        sampling: SamplingOptions = _DEFAULT_SAMPLING,
        *,
        resume: bool = False,
    ) -> TokenStream:
        """Answer a conversation through the model's chat template."""
        return TokenStream(self, wire.chat(messages, sampling, resume=resume))

    def next_token(
        self,
        prompt: str | Sequence[int],
        *,
        then: Sequence[int] = (),
        among: Sequence[int] = (),
        top_k: int = 1,
    ) -> NextToken:
        """The tokens that may follow a prompt and the tokens `then`, from one forward pass."""
        if then:
            before = self.tokenize(prompt, add_special=True) if isinstance(prompt, str) else prompt
            prompt = [*before, *then]
        told: NextToken = self._ask(wire.next_token(prompt, among, top_k))
        lacking = wire.without_text(told) if not among else ()
        return wire.with_texts(told, {number: self.detokenize([number]) for number in lacking})


class AsyncVllmClient(AsyncClient):
    """The same for asyncio."""

    async def tokenize(
        self, text: str, *, add_special: bool = False, parse_special: bool = True
    ) -> list[int]:
        """The token ids of a text."""
        wire.check_parse_special(parse_special)
        tokens: list[int] = await self._ask(wire.tokenize(text, add_special=add_special))
        return tokens

    async def detokenize(self, tokens: Sequence[int]) -> str:
        """The text of token ids."""
        text: str = await self._ask(wire.detokenize(tokens))
        return text

    async def apply_template(self, messages: Sequence[Message]) -> str:
        """The prompt that the model's chat template makes of a conversation."""
        return await self.detokenize(await self._ask(wire.tokenize_chat(messages)))

    def completion(
        self,
        prompt: str | Sequence[int],
        sampling: SamplingOptions = _DEFAULT_SAMPLING,
        *,
        resume: bool = False,
    ) -> AsyncTokenStream:
        """Continue a prompt, given as text or token ids."""
        return AsyncTokenStream(self, wire.completion(prompt, sampling, resume=resume))

    def chat(
        self,
        messages: Sequence[Message],
        sampling: SamplingOptions = _DEFAULT_SAMPLING,
        *,
        resume: bool = False,
    ) -> AsyncTokenStream:
        """Answer a conversation through the model's chat template."""
        return AsyncTokenStream(self, wire.chat(messages, sampling, resume=resume))

    async def next_token(
        self,
        prompt: str | Sequence[int],
        *,
        then: Sequence[int] = (),
        among: Sequence[int] = (),
        top_k: int = 1,
    ) -> NextToken:
        """The tokens that may follow a prompt and the tokens `then`, from one forward pass."""
        if then:
            before = (
                await self.tokenize(prompt, add_special=True) if isinstance(prompt, str) else prompt
            )
            prompt = [*before, *then]
        told: NextToken = await self._ask(wire.next_token(prompt, among, top_k))
        lacking = wire.without_text(told) if not among else ()
        return wire.with_texts(
            told, {number: await self.detokenize([number]) for number in lacking}
        )
