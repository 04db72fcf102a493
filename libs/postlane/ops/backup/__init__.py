"""Backup and restore of what Kafka alone knows: copied at a stated point, checked, put back without mailing anything.

Following a record: plan (the cut and the ranges) -> take (read, chunk) -> chunks, encrypt, store -> manifest; and back:
verify -> pending (what was on its way) -> restore. docs/backup.md says it in words for operators.
"""
