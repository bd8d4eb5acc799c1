"""The attack benchmark: a fixed grid of recorded runs, attacked by every registered attack.

grid        the cells, their worlds, and the grid's version
identity    the benchmark id: only results of the same id are comparable
providers   who provides an attack, and whether its code has changed
cells       run one cell, attack it, and keep what was found
results     `benchmark.json`: its classes, and how it is read and written
run         all cells, in processes, resumable
table       the results as text for terminals
compare     two results of the same id, cell by cell
cli         `fedproxy-secure benchmark`
"""
