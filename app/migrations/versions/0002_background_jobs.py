"""Jobs that were acknowledged before their end: where their audio is, and in what form the answer was wanted."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Three columns of jobs."""
    op.add_column("jobs", sa.Column("background", sa.Boolean, nullable=False, server_default=sa.false()))
    op.add_column("jobs", sa.Column("source", sa.JSON))
    op.add_column("jobs", sa.Column("response_format", sa.String(16), nullable=False, server_default="json"))
