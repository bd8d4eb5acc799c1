"""Memorization: can details of one client's records be extracted from models that others hold?"""
