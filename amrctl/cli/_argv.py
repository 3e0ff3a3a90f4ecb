"""`--against A B` for `--against A --against B`: options that take several values in a row."""

from __future__ import annotations

from collections.abc import Sequence

# An option means the same in every verb, so its name is enough.
SEVERAL = ("--against", "--development-scores", "--manifest", "--teacher")


def spread(arguments: Sequence[str]) -> list[str]:
    """Repeat an option of `SEVERAL` before each of the words after it, up to the next option.

    What stands before such an option stays positional: `evaluate P Q --against R S --test M`.
    """
    done: list[str] = []
    current = ""
    for i, word in enumerate(arguments):
        if word == "--":
            return [*done, *arguments[i:]]
        name = word.partition("=")[0]
        if name in SEVERAL:
            current = name
        elif word.startswith("-") and len(word) > 1:
            current = ""
        elif current and done[-1] != current:
            done.append(current)
        done.append(word)
    return done
