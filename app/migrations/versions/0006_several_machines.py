"""Which node runs what, until when; and which nodes there are."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Two tables that only servers with several machines fill."""
    moment = sa.DateTime(timezone=True)
    op.create_table(
        "leases",
        sa.Column("job_id", sa.String(64), primary_key=True),
        sa.Column("source", sa.JSON, nullable=False),
        sa.Column("sent_at", moment, nullable=False),
        sa.Column("node", sa.String(64)),
        sa.Column("lease_until", moment),
        sa.Column("stage", sa.String(16), nullable=False, server_default="queued"),
        sa.Column("fraction", sa.Double, nullable=False, server_default="0"),
        sa.Column("worked_s", sa.Double, nullable=False, server_default="0"),
    )
    op.create_index("leases_by_end", "leases", ["lease_until"])
    op.create_table(
        "nodes",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("seen_at", moment, nullable=False),
        sa.Column("state", sa.JSON, nullable=False),
    )
