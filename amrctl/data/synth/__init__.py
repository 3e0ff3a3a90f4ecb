"""Synthesis of recordings with known moments: event clips mixed over backgrounds."""

from __future__ import annotations

from amrctl.data.synth.run import SynthResult, synthesise
from amrctl.data.synth.settings import BUILTIN, PRESETS, SynthSettings, with_preset

__all__ = ["BUILTIN", "PRESETS", "SynthResult", "SynthSettings", "synthesise", "with_preset"]
