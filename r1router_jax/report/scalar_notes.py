"""Says what the scalars of a training run are, in the order of the report.

First what held-out questions say of the policy, then whether there is anything
to learn from, then how the policy and its updates behave.
"""

# The scalar, as the log names it, and one line below its learning curve.
SCALAR_NOTES = {
  # Of validation.
  "validation/f1": "F1 of greedy answers to held-out questions.",
  "validation/exact": "Share of held-out questions that are answered exactly.",
  "validation/recall": "F1-Recall of the same answers.",
  "validation/total": "Mean reward of greedy responses to held-out gold steps.",
  "validation/route": "Share of plan positions with an accepted route, over "
  "held-out questions whose gold trace is known.",
  "validation/routes/text": "Share of all choices that plans make: texts.",
  "validation/routes/image": "Share of all choices that plans make: images.",
  "validation/routes/table": "Share of all choices that plans make: tables.",
  "validation/routes/stop": "Share of all choices that plans make: no more "
  "searches.",
  "validation/retrievals": "Searches of a held-out question.",
  "validation/tokens": "Tokens written to a held-out question.",
  "validation/well_formed": "Share of held-out questions with no response that "
  "breaks the protocol.",
  "validation/faults": "Faults of a held-out question, of any kind.",
  # Whether there is anything to learn from.
  "solved_groups": "Share of questions with at least one right trajectory in "
  "the group: near 0 there is nothing to learn from.",
  "equal_groups": "Share of groups whose rewards are all alike, and from which "
  "nothing is learnt.",
  "reward/std_in_group": "How far the rewards of a group lie apart.",
  "reward/total": "Mean reward of what was sampled.",
  # The policy and its updates.
  "entropy": "Nats of a token: near 0 the policy tries nothing new.",
  "response_tokens": "Mean length of a response.",
  "truncated": "Share of responses that end at the longest length.",
  "logp_drift": "How far a token's log-probability lies from the old one.",
  "sampler_drift": "How far the trainer's old log-probability of a token lies "
  "from the sampler's.",
  "clipped": "Share of tokens whose ratio the objective bounds.",
  "kl": "Divergence from the policy that the run started from.",
}
