"""What happened in a run, written down for evaluation: transcript, every party's state, views of it."""
