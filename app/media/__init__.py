"""Foreign files and foreign addresses: everything that touches them runs in a capped child or behind the URL policy."""
