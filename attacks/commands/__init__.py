"""Commands of `attack` with a module of their own, and what all of them share."""
