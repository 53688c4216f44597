"""Many recordings that are handed in at once: the batch, and which jobs are its items."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """The table of batches; three columns of jobs, and an index of the items of a batch."""
    op.create_table(
        "batches",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("owner", sa.String(64), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("total", sa.Integer, nullable=False),
        sa.Column("idempotency_key", sa.String(255)),
        sa.Column("request_hash", sa.String(64)),
        sa.Column("webhook_url", sa.String(2048)),
        sa.Column("webhook_tries", sa.Integer, nullable=False, server_default="0"),
        sa.Column("webhook_at", sa.DateTime(timezone=True)),
        sa.Column("webhook_done", sa.Boolean, nullable=False, server_default=sa.false()),
    )
    op.create_index("batches_by_owner", "batches", ["owner", "created_at"])
    op.create_index("batches_by_idempotency_key", "batches", ["owner", "idempotency_key"], unique=True)
    op.add_column("jobs", sa.Column("batch_id", sa.String(64)))
    op.add_column("jobs", sa.Column("batch_index", sa.Integer))
    op.add_column("jobs", sa.Column("label", sa.String(200)))
    op.create_index("jobs_by_batch", "jobs", ["batch_id", "batch_index"], unique=True)
