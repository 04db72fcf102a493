"""Schema migrations of the ledger's database, run at start (`postlane_ledger.migrate`)."""
