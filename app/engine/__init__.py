"""What runs in workers only; nothing else may import it. Whatever part is imported, the environment is set up first."""

from app.engine import preload as preload
