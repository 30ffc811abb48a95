"""One answer in the making: its tokens, its place in the rules' machine, what was found on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from safealign.decoding.options import DecodingOptions
from safealign.decoding.rows import EngineRow, Prompt
from safealign.decoding.rules import Probe, RowState
from safealign.decoding.sampler import RowNoise
from safealign.decoding.stopping import StopStrings
from safealign.decoding.trace import Evaluation, Recording

END_OF_TURN, TOKEN_LIMIT, REFUSED, CANCELLED, FAILED = "stop", "length", "refusal", "cancelled", "error"


@dataclass(eq=False)
class DecodedRow:
    """One answer in the making. `tokens` are g_1 … g_t, an end-of-turn token included.

    `shown`: how many of them may be shown (nothing shown is ever withdrawn). `intervened_at`: the g index at
    which the row turned to REFUSING, None if it did not. `spared`: up to the end of what an intervention inserted, in
    which stop strings do not count: a refusal is shown whole. `woken`: steps at which the token head asked for a
    window; `stirs`: its logit of each token, if recorded. `finish`: `stop`, `length`, `refusal` (the fixed one),
    `cancelled` or `error` (its prompt could not be fed, or what came of it is no number) once done. `eos_ids` end it.
    """

    prompt: Prompt
    noise: RowNoise
    options: DecodingOptions
    stops: StopStrings
    eos_ids: frozenset[int]
    tokens: list[int] = field(default_factory=list)
    state: RowState = field(default_factory=RowState)
    trace: list[Evaluation] = field(default_factory=list)
    shown: int = 0
    intervened_at: int | None = None
    finish: str | None = None
    stopped: bool = False  # the newest tokens complete a stop string
    spared: int = 0
    unfed: bool = False  # the newest token was chosen and not yet fed
    woken: set[int] = field(default_factory=set)
    stirs: list[float] = field(default_factory=list)
    place: EngineRow = field(init=False)  # the row's place in the engine, while it is live

    @property
    def request_logit(self) -> float | None:
        """Logit of p_0; None without safety."""
        return self.trace[0].logit if self.trace else None

    def recording(self, text: str = "") -> Recording:
        """What calibration reads, for a row decoded with `record`."""
        return Recording.of(self.trace, len(self.tokens), text, self.stirs)

    @property
    def ended(self) -> bool:
        """Whether the newest token ends the turn, or completes a stop string."""
        return self.stopped or (bool(self.tokens) and self.tokens[-1] in self.eos_ids)

    @property
    def final(self) -> bool:
        """Whether nothing follows the newest token: the answer ended, or is at the token limit."""
        return self.ended or len(self.tokens) >= self.options.max_new_tokens

    def end(self, reason: str | None = None) -> None:
        """The answer is done, all of it may be shown. `reason` None: the one that made the newest token `final`."""
        natural = END_OF_TURN if self.ended else TOKEN_LIMIT
        self.finish, self.shown = reason or natural, len(self.tokens)

    def restart(self) -> None:
        """As if its prompt had never been fed."""
        self.tokens, self.trace, self.state = [], [], RowState()
        self.shown = self.spared = 0
        self.intervened_at = self.finish = None

    def note(
        self,
        step: int,
        verdicts: Iterable[tuple[Probe, float]],
        state: RowState,
        forwards: int,
        p: Callable[[float], float],
    ) -> None:
        """Writes verdicts of `step` into the trace; `p` turns a logit into a probability."""
        self.trace += [Evaluation.of(probe, step, x, p(x), str(state.state), forwards) for probe, x in verdicts]
