"""Who wants to be told of a job's end, and how far that is."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Four columns of jobs, and an index of those that are to be delivered."""
    op.add_column("jobs", sa.Column("webhook_url", sa.String(2048)))
    op.add_column("jobs", sa.Column("webhook_tries", sa.Integer, nullable=False, server_default="0"))
    op.add_column("jobs", sa.Column("webhook_at", sa.DateTime(timezone=True)))
    op.add_column("jobs", sa.Column("webhook_done", sa.Boolean, nullable=False, server_default=sa.false()))
    op.create_index("jobs_by_webhook", "jobs", ["webhook_done", "webhook_at"])
