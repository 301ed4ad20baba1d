"""The durable record of a run: who holds it, what is recorded, what is promoted.

`filejournal` is the front; `terms` has the protocol of two drivers that want one state; `steps` and
`store` do its reads and writes; `segments` and `ledger` say what stands in the files.
"""
