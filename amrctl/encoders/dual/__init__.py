"""The dual encoder of language-based audio retrieval: recordings and sentences as vectors of one space.

`load.py` opens a trained one (`load_dual`); `model.py` is the network that training moves.
"""
