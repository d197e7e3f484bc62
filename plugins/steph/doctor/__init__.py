"""`steph doctor`: what would keep a run from working, said before anything is downloaded or trained.

Facts are read first, each in a process of its own with a deadline; the checks are pure functions from facts to one line
each. Part of the conductor: it sees all rooms.
"""
