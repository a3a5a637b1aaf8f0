"""Our engine, on torch and transformers. `engine.py` holds its loop; nothing here imports Ray."""
