"""Hosts on a real network of this machine's kernel: links that can be cut, slowed and listened to."""
