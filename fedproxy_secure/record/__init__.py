"""The record of a run for evaluation: the transcript, every party's state, and views of them."""
