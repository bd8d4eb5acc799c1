"""What an adversary does with its view: attacks on privacy, on the model's secrecy, on integrity.

Empty for now. Here will live membership inference, reconstruction of records, extraction of the LLM
and manipulated updates, each measured against a control and reported with an interval. This package
builds on `threat_models` and `fedproxy_secure`; `fedproxy_secure` imports neither.
"""
