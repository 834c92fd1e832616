"""From the rows of a data file to batches of tensors: checked conversations, token ids, packs, batches.

Nothing is imported here: `tutelage.data.conversations` works without torch and transformers.
"""
