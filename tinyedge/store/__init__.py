"""The store: what the daemon has promised, through every power cut.

One commit is one record in a segmented journal and one flush. Two readers follow it: state is folded into an LMDB
checkpoint, series stay in their segments until they are taken. Each invariant, and where it is held:

    S1   one append in flight; every opening draws a life, which begins each record's check, and starts in a segment of
         its own; what recovery can't know to be flushed is written once more first       life.py, record.py
    S2   a segment is zeros, synced, renamed, its directory synced, before its first use   journal.py
    S3   records are whole blocks; a block that was acknowledged is never written again    journal.py, record.py
    S4   a checkpoint holds flushed records and their last sequence, in one transaction    fold.py, checkpoint.py
    S5   a segment is released only after that transaction has returned                    fold.py
    S6   a new checkpoint is made aside, synced, renamed, and its parent synced            checkpoint.py
    S7   a cursor is durable before what it has passed is released; what was dropped is computed from cursor and first
         item present                                                                      fold.py, series.py
    S8   a bad record before a valid one of the same life is damage: named, and survived   recovery.py, journal.py
    S9   a store that was not recovered to its own end counts its series in a new epoch    recovery.py, life.py
    S10  a flush that has failed is never tried again on that file                         life.py, checkpoint.py
    S11  after an unclean end the checkpoint is verified in a child before it is opened, and a backup is at hand
                                                                                           recovery.py, verify.py

A damaged last record can't be told from a tail that was never acknowledged.
"""
