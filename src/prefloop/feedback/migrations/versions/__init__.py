"""One file for each step: NNNN_name.py. A step that was released is never edited; write the next one.

There is no way down: who needs an older schema restores a backup that was made with it.
"""
