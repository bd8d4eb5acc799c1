"""The methods that `compare` runs, one module for each idea.

references  baselines of tuning: no training, training on pooled records, each client alone
whole_llm   federated averaging of the LLM itself, which clients then hold
fedot       Offsite-Tuning, federated: clients train the first and last blocks around an emulator
fedproxy    the paper's method and its variants, with updates in the clear
masked      the same under masking
"""
