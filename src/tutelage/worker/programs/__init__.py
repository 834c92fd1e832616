"""What the built-in kinds of jobs run: `python -m tutelage.worker.programs.KIND` in a run's folder.

Each reads `params.json` there, does the work with the library, and reports through the client. Not here: starting
them, streaming what they print, uploading what they leave in `uploads/` (the worker).
"""
