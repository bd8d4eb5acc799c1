"""A proxy that another party sent: its files, its tokenizer and its model, checked before use."""
