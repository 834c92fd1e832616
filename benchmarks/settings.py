"""What several cases have in common, without a heavy import: the runner reads it too."""

RANK = 16
LORA_LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

PARTS = ("rollout", "teacher", "student forward", "head and loss", "backward", "optimizer")
"""Of a step. teacher, student forward: the layers without the head. head and loss: all between the last hidden states
and the loss, with the gradient where that is formed there. backward: the rest of it. What is left is `other`."""

HEAD_POSITIONS, HEAD_WIDTH, VOCABULARY = 1024, 896, 151_936
"""The head of Qwen2-0.5B, at as many positions as a small step has."""
