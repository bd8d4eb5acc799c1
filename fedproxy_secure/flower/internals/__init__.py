"""Every use that this project makes of Flower beyond Flower's public interface.

Flower gives a message its id when it is pushed, and takes the sender of a new message from the task that
is running. The in-process grid (`in_process`) has to do both itself (`messages`). A deployment's SuperLink
gets checks that Flower's lacks (`superlink`), its SuperNodes get a check of the app (`supernode`), and a
process of this project answers their messages (`worker`). `tests/unit/test_flower_internals.py` tests all
of them with the installed version of Flower, and lists the versions that were tested.
"""
