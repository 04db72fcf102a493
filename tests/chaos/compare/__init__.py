"""The same kill test for Postlane and for what people use today, with one kind of witness."""
