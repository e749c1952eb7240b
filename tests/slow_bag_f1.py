"""Bags of words compared the slow way, a word at a time."""


def best(found, golds):
  """(precision, recall, F1) of the first gold of the best F1; all are words."""
  best = (0, 0, 0)
  for gold in golds:
    left, same = list(found), 0
    for word in gold:
      if word in left:
        left.remove(word)
        same += 1
    if same:
      p, r = same / len(found), same / len(gold)
      best = max(best, (p, r, 2 * p * r / (p + r)), key=lambda x: x[2])
  return best
