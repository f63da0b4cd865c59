"""What every engine of completions offers, and what a rollout is. Implementations: local."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

__all__ = ["Engine", "Progress", "Rollout"]

Progress = Callable[[int, int], None]
"""Called with (finished completions, all completions) now and then."""


class Rollout(NamedTuple):
    """One drawn completion."""

    prompt: int
    """Index of its prompt."""
    ids: tuple[int, ...]
    """Drawn tokens, the stop token included."""
    logps: tuple[float, ...]
    """Log-probability of each token under the sampler, nats, at the sampling temperature."""
    finished: bool
    """It ended with a stop token; False means it ran into the limit."""


class Engine(Protocol):
    """Draws completions. The support is never truncated: no top-p, no top-k."""

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        num_completions: int,
        max_new_tokens: int,
        temperature: float,
        seed: int,
        on_progress: Progress | None = None,
    ) -> list[Rollout]:
        """Draw completions of each prompt.

        Args:
            prompts: token ids, each at least one token.
            num_completions: G completions per prompt, > 0.
            max_new_tokens: > 0.
            temperature: >= 0; 0 takes the most likely token, and its log-probs are those at temperature 1.
            seed: the same seed draws the same completions.

        Returns:
            Rollouts ordered prompt by prompt, G of each.
        """
        ...
