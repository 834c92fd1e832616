"""The server: REST, OpenAI's endpoints, the page, tokens. Not here: records and queue (`jobs`), running (`worker`)."""
