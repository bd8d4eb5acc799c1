"""Was this record, secret or property in the data?"""
