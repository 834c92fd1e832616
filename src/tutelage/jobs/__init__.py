"""Jobs: what they are called, where they stand, the queue, the files. Not here: HTTP (`server`), running (`worker`)."""
