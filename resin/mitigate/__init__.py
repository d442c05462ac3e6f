"""Mitigation: what could be done about a finding, lightest first, and doing it under rules.

`plan` only looks. `apply` acts, and only on actions that the configuration lists by name; every attempt goes
to the audit trail, and cool-downs and the hourly budget are read from it.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from importlib.metadata import entry_points

from ..config import Config, load_config
from ..model import Action, Diagnosis, Finding
from . import audit
from .base import Context, Mitigation, Outcome
from .builtin import BUILT_IN

GROUP = "resin.mitigations"
log = logging.getLogger("resin.mitigate")

__all__ = ["Context", "Mitigation", "Outcome", "apply", "mitigations", "plan"]


def mitigations() -> dict[str, Mitigation]:
    """All mitigations by name, lightest first: built in and from the entry point group `resin.mitigations`."""
    found: dict[str, Mitigation] = {}
    for make in BUILT_IN:
        one = make()
        found[one.name] = one
    for point in sorted(entry_points(group=GROUP), key=lambda p: p.name):
        if point.name in found:
            continue
        try:
            one = point.load()()
            if not isinstance(one, Mitigation):
                raise TypeError(f"{point.value} has no name, weight, why_not, command and apply")
        except Exception as error:  # a broken plug-in must not take the others with it
            log.warning("mitigation %s left out: %s", point.name, error)
            continue
        found[point.name] = one
    return dict(sorted(found.items(), key=lambda item: (item[1].weight, item[0])))


def plan(
    finding: Finding,
    diagnosis: Diagnosis | None,
    config: Config,
    *,
    now_s: float | None = None,
    with_refused: bool = False,
) -> list[Action]:
    """Actions that could be taken now, lightest first; nothing is done.

    Empty for findings that are neither leak nor retention: mitigation stops when the detector clears.
    `with_refused` adds those whose precondition fails, with ok=False and the reason.
    """
    now = time.time() if now_s is None else now_s
    if finding.verdict not in ("leak", "retention"):
        return []
    context = Context(finding, diagnosis, config, now)
    actions = []
    for one in mitigations().values():
        reason = one.why_not(context) or audit.refusal(
            config.audit_file,
            finding.id,
            one.name,
            now,
            cooldown_s=config.mitigate_cooldown_s,
            max_per_hour=config.mitigate_max_per_hour,
        )
        if reason is None:
            allowed = one.name in config.mitigations
            text = (
                "would be applied" if allowed else "possible; list it in the option `mitigations` to allow it"
            )
            actions.append(Action(finding.id, one.name, one.command(context), False, None, text, now))
        elif with_refused:
            actions.append(Action(finding.id, one.name, (), False, False, reason, now))
    return actions


def apply(
    action: Action,
    finding: Finding,
    diagnosis: Diagnosis | None = None,
    config: Config | None = None,
) -> Action:
    """Take one planned action, after its preconditions, the cool-down and the budget were checked again.

    Returns the action with `applied`, `ok` and `reason` filled in. Never raises for what the action itself does;
    raises ValueError for a name that does not exist or a finding that is not the action's.
    """
    config = load_config() if config is None else config
    known = mitigations()
    if action.name not in known:
        raise ValueError(f"no mitigation is called {action.name!r}; there are: {', '.join(known)}")
    if finding.id != action.finding_id:
        raise ValueError(f"action is for finding {action.finding_id}, not {finding.id}")
    now = time.time()
    context = Context(finding, diagnosis, config, now)
    one = known[action.name]
    outcome = _outcome(one, context)
    done = dataclasses.replace(
        action, applied=outcome.applied, ok=outcome.ok, reason=outcome.reason, time_s=now
    )
    audit.record(config.audit_file, done)
    return done


def _outcome(one: Mitigation, context: Context) -> Outcome:
    config = context.config
    if one.name not in config.mitigations:
        return Outcome(False, False, f"{one.name} is not listed in the option `mitigations`")
    if context.finding.verdict not in ("leak", "retention"):
        return Outcome(False, False, f"the finding is {context.finding.verdict} now: nothing to act on")
    try:
        reason = one.why_not(context) or audit.refusal(
            config.audit_file,
            context.finding.id,
            one.name,
            context.now_s,
            cooldown_s=config.mitigate_cooldown_s,
            max_per_hour=config.mitigate_max_per_hour,
        )
        return Outcome(False, False, reason) if reason is not None else one.apply(context)
    except Exception as error:  # a failing action is a result to be told, not the end of the service
        log.exception("mitigation %s failed", one.name)
        return Outcome(True, False, f"{type(error).__name__}: {error}")
