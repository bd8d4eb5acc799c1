"""Flower apps and engines: one server app, one client app, three ways to run them.

The arithmetic on updates is elsewhere (`federate`, `protect`); these modules move messages.
"""
