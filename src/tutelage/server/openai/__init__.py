"""OpenAI's endpoints, under /v1, as the unmodified `openai` client drives them: files, fine-tuning, models, chat."""
