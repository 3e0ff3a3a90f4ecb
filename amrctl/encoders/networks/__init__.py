"""Networks of the encoders. Apart from the encoders' own files, which are imported to be listed and
so must stay free of torch."""
