"""How a model fits: context, slots and layers."""

from rocllm.memory.plan import DEFAULT_CTX_SIZE, MemoryPlan, plan_memory

__all__ = ["DEFAULT_CTX_SIZE", "MemoryPlan", "plan_memory"]
