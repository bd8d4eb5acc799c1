"""Membership: was this record, secret or property in the data?"""
