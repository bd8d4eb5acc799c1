"""What a user runs: a run, a comparison or a matrix, and the joining of their results.

run         compress, federate, fuse and evaluate for every seed
run_report  the report of a run's finished seeds, and the notes that it shares with sweeps
compare     every method x remove ratio x seed
matrix      every protection x compression x remove ratio x fusion x adapter x seed, attacked
dry_run     the cost of a run, counted before it starts
join        one report over several runs and matrices
attacked    attack a finished run and write its report again
stages      the stages of the pipeline: compress, federate, fuse, evaluate
tracking    rounds and measures for TensorBoard, MLflow, Weights & Biases
method      what a method of a comparison is
inputs      what a method starts from, and the steps that methods share
results     scores of a model, results of a method, and how records store them
methods/    the methods themselves, one module for each idea
sweeps/     the cells of comparisons and matrices: one unit of work each, and how results join
"""
