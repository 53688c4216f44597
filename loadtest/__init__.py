"""The load test behind ``test_concurrency.py``.

Pure: ``records``, ``replies``, ``verdict``, ``schedule``, ``stats``, ``advice``, ``table``. Files and sockets: ``audio``,
``client``, ``monitor``, ``runner``, ``report``, ``plot``, ``cli``.
"""
