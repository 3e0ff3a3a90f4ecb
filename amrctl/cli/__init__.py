"""The command line: one short file per verb. Nothing here imports torch before a verb runs."""
