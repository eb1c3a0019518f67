"""One file for each step: NNNN_name.py. A step that was released is never edited; write the next one."""
