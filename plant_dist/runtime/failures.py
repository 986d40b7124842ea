"""What ended the program, as an exit code and one line; above all, whether another rank did.

A rank that dies makes all others fail in their next collective. Their errors are told apart here,
so that the rank that failed by itself can be shown first. Light to import; knows no stage.
"""

from __future__ import annotations

from plant_dist.errors import PlantError, RankLost

INTERNAL_ERROR = 70  # EX_SOFTWARE of sysexits.h
INTERRUPTED = 130  # 128 + SIGINT

# torch has classes of errors for NCCL and for the store that ranks meet at. Those of gloo are plain
# and told by their words: where it was compiled from, and what became of the connection.
_TORCH_CLASS = "DistError"
_GLOO_WORDS = ("gloo/transport", "Connection closed by peer", "Connection reset by peer")


def explain(error: BaseException, command: str) -> tuple[int, str]:
    """Return the exit code of an error that ended a command, and the line that is said of it."""
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED, "interrupted"
    if isinstance(error, PlantError):
        return error.exit_code, f"{command}: {_one_line(str(error))}"
    kind, what = type(error).__name__, str(error).strip() or "no message"
    first = what.splitlines()[0]
    if is_loss_of_a_rank(error):
        return RankLost.exit_code, (
            f"{command}: another rank ended or cannot be reached ({first.split('. ')[0]}); "
            "`plant-dist status RUN` shows the rank that failed first"
        )
    return INTERNAL_ERROR, (
        f"internal error in {command}: {kind}: {first} (run again with --debug for the traceback)"
    )


def is_loss_of_a_rank(error: BaseException) -> bool:
    """Say whether an error means that a collective failed because another rank is gone."""
    # By name: the class would have to be imported with all of torch, also where there is none.
    if any(kind.__name__ == _TORCH_CLASS for kind in type(error).__mro__):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in _GLOO_WORDS)


def _one_line(text: str) -> str:
    # Libraries' reasons may run over lines; a log that is searched wants one.
    return " ".join(text.split())
