"""This project's measures, one module for each axis; `evidence.measure` has their order."""
