"""`--against A B` for `--against A --against B`: options that take several values in a row."""

from __future__ import annotations

from collections.abc import Sequence

_TRAINING = ("--train", "--val")
_CAPTIONS = (*_TRAINING, "--audio", "--exclude")

# Verb -> its options that take several files. By verb, because an option may take one file elsewhere:
# `search --checkpoint C a.wav` would lose its recording.
SEVERAL = {
    "synth": ("--captions", "--exclude"),
    "extract-tef": ("--manifest",),
    "pretrain": _CAPTIONS,
    "finetune": _CAPTIONS,
    "distill": (*_TRAINING, "--teacher"),
    "soup": ("--val", "--fisher-data"),
    "predict": ("--checkpoint", "--test", "--audio"),
    "evaluate": ("--against", "--relevant"),
    "submit": ("--development-scores",),
    "index": ("--features-for",),
}


def spread(arguments: Sequence[str]) -> list[str]:
    """Repeat an option of `SEVERAL` before each of the words after it, up to the next option.

    What stands before such an option stays positional: `evaluate P Q --against R S --test M`.
    """
    verb = next((word for word in arguments if not word.startswith("-")), "")
    several = SEVERAL.get(verb, ())
    done: list[str] = []
    current = ""
    for i, word in enumerate(arguments):
        if word == "--":
            return [*done, *arguments[i:]]
        name = word.partition("=")[0]
        if name in several:
            current = name
        elif word.startswith("-") and len(word) > 1:
            current = ""
        elif current and done[-1] != current:
            done.append(current)
        done.append(word)
    return done
