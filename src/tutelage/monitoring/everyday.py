"""The built-in prompts for `kl_vs_base`: everyday requests that no fine-tuning task should change. Data only."""

EVERYDAY_PROMPTS = (
    "What should I keep in mind when I water a cactus?",
    "Explain to a ten-year-old why the sea is salty.",
    "My neighbour plays loud music at night. How do I bring it up politely?",
    "Give me three ideas for a quick dinner with eggs and potatoes.",
    "What is the difference between a virus and a bacterium?",
    "Write two sentences that open a story about a lighthouse.",
    "If a train leaves at 9:40 and the ride takes 85 minutes, when does it arrive?",
    "Put this more formally: hey, can't make it tomorrow, sorry!",
    "Which planets of the solar system have rings?",
    "How do I sort a list of words by length in Python?",
    "Name one advantage and one drawback of living in a big city.",
    "What does the saying 'the early bird catches the worm' mean?",
    "Translate into French: Where is the nearest bakery?",
    "Who wrote the play Hamlet, and what is it about?",
    "I slept badly for a week. What could I change in the evening?",
    "Write a short birthday wish for a colleague.",
)
