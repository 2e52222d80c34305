"""What holds the code to its own rules, and the documents to the code."""
