"""A client's journal: the record, on its own disk, of what it has answered.

Nothing that must happen only once rests on Flower's state.
"""
