"""Runs jobs: asks a server for them over HTTP, runs each as a process, reports what it prints and leaves."""
