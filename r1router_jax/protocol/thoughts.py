"""Thoughts of gold responses that say nothing special.

The policies that come with the package have learnt them.
"""

# Of a plan, by the knowledge base that it searches first.
PLAN = {
  "text": "look in the text",
  "image": "look at the picture",
  "table": "look in the table",
  "none": "enough is known",
}

GIVE_UP = "it is nowhere"  # Of a plan and an answer after vain searches.
READ = "it says so"  # The passages tell the answer.
MISSED = "it does not say"  # They do not.
GIVEN = "answer from what is given"  # Nobody knows whether they do.
