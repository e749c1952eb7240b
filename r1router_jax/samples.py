"""What was sampled while a policy learned, as a part of the page.

A group is a line of `samples.jsonl`: a routing step of one iteration with all
responses that were drawn to it, their rewards and their advantages.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from r1router_jax.markup import folded, safe

Group = Mapping[str, Any]


def section(runs: Mapping[str, Sequence[Group]]) -> str:
  """The first and the last groups of each run; nothing where there are none."""
  shown = "".join(
      _group(run, group) for run, groups in runs.items()
      for group in ends(groups))
  return shown and f"<h2>What was sampled while it learned</h2>{shown}"


def ends(groups: Sequence[Group]) -> list[Group]:
  """Those of the first and of the last iteration."""
  steps = [group["step"] for group in groups]
  return [group for group in groups
          if group["step"] in (min(steps), max(steps))]


def _group(run: str, group: Group) -> str:
  rows = "".join(
      f'<tr><th scope="row">{reward:.2f}</th><td>{advantage:+.2f}</td>'
      f"<td>{folded(response)}</td></tr>"
      for reward, advantage, response in zip(
          group["rewards"], group["advantages"], group["responses"],
          strict=True))
  asked = "".join(
      f'<p class="sub">{safe(text)}</p>'
      for text in (*(f"{asked} {answer}" for asked, answer in group["history"]),
                   group["sub_question"]) if text)
  gold = " · ".join(map(safe, group["gold"]))
  return (
      f'<article><header><span class="badge">{safe(group["kind"])}</span> '
      f'<small>{safe(run)}, iteration {group["step"]:d} · '
      f'{safe(group["id"])}</small></header>'
      f'<h3>{safe(group["question"])}</h3>{asked}'
      f"<div><b>Accepted</b> {gold}</div>"
      '<div class="wide"><table class="said"><thead><tr>'
      '<th scope="col">Reward</th><th scope="col">Advantage</th>'
      f'<th scope="col">Response</th></tr></thead><tbody>{rows}</tbody></table>'
      "</div></article>")
