"""A client's journal: the record, on its own disk, of what it has answered.

Whatever a client must do only once is recorded here; Flower's state is not relied on for it. `rounds` has
the class `Journal`, `store` its file.
"""
