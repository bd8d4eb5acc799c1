"""Fusion rules: how the server makes one step of the updates that unlike clients sent.

algorithms   the paper's arithmetic on updates in the clear (Eq. 5-14)
rule         what a fusion rule is, and which one settings name
averages     fedavg, fedadam: rules that need the mean alone
elections    ties, h_ties: rules that elect a sign at each coordinate, in the clear or from sums
"""
