"""Who attacks and what they see: adversaries, capabilities, surfaces and views.

Empty for now. Here will live one module per adversary (the server, colluding clients, an outsider),
each a declaration of what that adversary can see and change in a recorded run. `attacks` builds on
this package, and this package on `fedproxy_secure`; `fedproxy_secure` imports neither.
"""
