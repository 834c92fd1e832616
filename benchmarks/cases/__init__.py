"""One file a case: what is measured on each side (`measure`), and the rows that come of it (`rows`)."""
