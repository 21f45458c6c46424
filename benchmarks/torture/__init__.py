"""Attacks on llmembed through its public doors: the command line in processes of their own, and the functions it calls.

Each attack breaks something that a machine or a person can break (a kill, a flipped bit, a full disk, a directory where
a file belongs) and states what must hold all the same. `make torture` runs all of them; `tests/test_torture.py` a few.
"""
