"""Memorization: can details of one client's records be read out of what others hold?"""
