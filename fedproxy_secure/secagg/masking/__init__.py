"""Secure aggregation by pairwise masks (Bonawitz et al. 2017): the sessions of client and server."""
