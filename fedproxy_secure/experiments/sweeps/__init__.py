"""The cells that `compare` and `matrix` run, each in a process of its own, and how their results join.

method_cells         one method with one remove ratio and one seed, and its record on disk
method_folder        a comparison's folder: the cells it accepts, has and lacks
method_rows          those records, joined over seeds into rows of a report
method_differences   differences between methods, paired by seed
method_tasks         the scale of each task of a comparison, with a constant answer
method_notes         the notes in the report of a comparison
matrix_cells         one configuration with one seed: its settings, its names, its folder
matrix_report        the results in a matrix's folders, joined over seeds into configurations of a report
schedule             the order in which cells run, each after its healed proxy, and a matrix's work
prepared_proxies     healed proxies, each prepared once for all cells that start from it
cell_progress        how much work a cell is, and the progress line of a whole sweep
pace                 how long work takes on this machine, measured
"""
