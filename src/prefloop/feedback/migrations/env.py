"""Alembic's entry point. `Store.open` hands over its connection, inside the transaction that it has begun.

To add a step by hand: write ``versions/NNNN_name.py``, raise ``SCHEMA`` in ``database.py`` and put the columns into
``tables.py``.
"""

from alembic import context

from prefloop.feedback.database import VERSION_TABLE
from prefloop.feedback.tables import METADATA

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=METADATA,
    version_table=VERSION_TABLE,
    # SQLite can roll DDL back as long as the driver does not commit behind our back, and ours does not.
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
