"""One adaptor a format: each file reads one way in which people keep trajectories, and knows no other.

`../sources.py` chooses among them; `../columns.py` has the checks that all of them share.
"""
