"""Other methods to answer a question, to compare with."""
