"""Alembic's entry: it runs on the connection and in the transaction that `postlane_ledger.migrate` hands over."""

from alembic import context

from postlane_ledger.migrate import VERSION_TABLE

context.configure(
    connection=context.config.attributes["connection"],
    version_table=VERSION_TABLE,
    transactional_ddl=True,
)
context.run_migrations()
