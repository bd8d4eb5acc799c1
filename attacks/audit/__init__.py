"""Audits: does a mechanism keep the epsilon that it claims?"""
