"""Features of a dual encoder that was trained from scratch on the set's own training clips.

`esc10`: `amrctl synth` mixes 5 s recordings of one clip each from the clips of the training split (and of
the validation split, to choose the epoch), over the noise and with the sentences of the set.
`retrieval-small` learns from these pairs, then hears the 60 s recordings second by second and reads the
queries. No clip of the test split is heard before the test, and no label is used that the detectors do not
have.
"""

from __future__ import annotations

from amrctl import provenance
from benchmarks.accuracy.commands import Commands
from benchmarks.accuracy.sets import DataSet, Sources, caption_rows, write_captions

RECORDINGS = "1600"
SPLITS = "train=0.8,val=0.2"


def add_dual(made: DataSet, sources: Sources) -> DataSet:
    """The set with the file of the dual encoder's frames and tokens; made on the first call.

    One encoder (seed 0) serves all seeds of the rows. Killed, the same call goes on.
    """
    own = made.reading("dual")
    told = own.folder / "dual.txt"
    if not told.is_file():
        commands = Commands()
        single, trained = own.folder / "mixed-single", own.folder / "runs" / "dual"
        captions = own.folder / "captions-single.csv"
        rows = caption_rows(sources.data / "esc10" / "clips.csv")
        write_captions(captions, [row for row in rows if row["split"] != "test"])
        commands.amrctl(
            "synth", "--events", sources.data / "esc10" / "audio", "--captions", captions,
            "--recordings", RECORDINGS, "--splits", SPLITS, "--length", "5", "--snr", "5-20",
            "--events-per-recording", "1", "--prefix", "esc10-single", "--seed", "4", "--out", single,
        )  # fmt: skip
        commands.amrctl(
            "finetune", "--recipe", "retrieval-small", "--train", single / "train.jsonl",
            "--val", single / "val.jsonl", "--audio", single, "--seed", "0", "--device", "cpu",
            "--out", trained,
        )  # fmt: skip
        encoder = f"amrctl:{trained}"
        manifests = [own.manifest(split) for split in ("train", "val", "test")]
        commands.amrctl(
            "extract-tef", "--manifest", *manifests, "--audio", own.folder / "mixed",
            "--audio-encoder", encoder, "--text-encoder", encoder, "--out", own.features,
        )  # fmt: skip
        provenance.write_text(told, "\n".join(commands.ran) + "\n")
    return own
