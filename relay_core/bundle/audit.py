"""Privacy audits as a release gate sees them: what a policy makes of a report, and what of it travels. No cryptography."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from relay_core.bundle.values import MIN_COUNT, is_count, is_digest, is_moment, is_name, is_number
from relay_core.errors import BundleError

AUDIT_FORMAT = 1
PERMUTATIONS = 1000
"""Permutations, at least, behind each p-value of an audit: it cannot be smaller than one in so many and one."""
AUDIT = "audit.signed.json"
"""Name of the file of a signed report."""
Outcome = Literal["passed", "failed", "inconclusive"]
ReleaseMode = Literal["off", "warn", "require"]
MAX_REASON = 500
"""Most letters of the reason of an override."""


@dataclass(frozen=True)
class Policy:
    """What an audit must show before a bundle may leave. docs/privacy.md says how the numbers were chosen."""

    max_auc: float = 0.60
    """Largest AUC that the 95 % interval of all attacks together may reach; 0.5 is a coin's."""
    alpha: float = 0.05
    """How often a single audit may raise a false alarm."""
    min_patients: int = 20
    """Fewest patients, on the side that has fewer, from which on an audit can pass."""


@dataclass(frozen=True)
class Gate:
    """Whether a bundle may leave: a site's policy, the audit of what leaves, and who leaves it nevertheless."""

    mode: ReleaseMode = "off"
    """`off`: no audit is asked for; `warn`: its absence or outcome is said; `require`: it must have passed."""
    policy: Policy = Policy()
    audit: Mapping[str, Any] | None = None
    """The checked report."""
    override: str | None = None
    """Why it may leave although the audit did not pass: it travels in the history, signed."""

    def clear(self, checkpoint: str, networks: Collection[str]) -> tuple[dict[str, Any] | None, str | None]:
        """Return what of the audit travels (None: nothing is said), and a warning.

        Args:
            checkpoint: digest of the checkpoint that leaves.
            networks: names of the networks of it that leave.

        Raises:
            BundleError: `release_refused`: the policy requires what the audit does not show; `audit_invalid`: it is of
                another checkpoint, or not of all that leaves.
        """
        if self.audit is None:
            if self.mode == "require" and self.override is None:
                raise BundleError(
                    "release_refused",
                    "the site's policy requires a privacy audit of this checkpoint, and there is none: relay privacy-audit",
                )
            warning = "no privacy audit was made of this checkpoint" if self.mode != "off" else None
            none: dict[str, Any] = {"outcome": "none", "override": self.override}
            return none if self.override is not None else None, warning
        if self.audit["checkpoint"] != checkpoint:
            raise BundleError(
                "audit_invalid",
                f"the audit is of checkpoint {self.audit['checkpoint'][:16]}, not of {checkpoint[:16]}, which is to leave",
            )
        if missed := sorted({*networks} - {*self.audit["networks"]}):
            words = f"the audit was made without {', '.join(missed)}, which are to leave too: audit them, or leave them out"
            if self.mode == "require" and self.override is None:
                raise BundleError("audit_invalid", words)
            return Gate(self.mode, self.policy, None, self.override).clear(checkpoint, networks)[0], words
        verdict = judge(self.audit, self.policy)
        reasons = "; ".join(verdict.reasons)
        refused = verdict.outcome != "passed"
        if refused and self.mode == "require" and self.override is None:
            raise BundleError(
                "release_refused",
                f"the privacy audit of this checkpoint is {verdict.outcome}, and the site's policy requires that it passed: "
                f"{reasons}",
            )
        fact: dict[str, Any] = {"outcome": verdict.outcome, "override": self.override if refused else None}
        combined, patients = self.audit["combined"], {key: self.audit["counts"][key] for key in _PATIENTS}
        if min(patients.values()) >= MIN_COUNT:
            fact |= {key: round(combined[key], 4) for key in ("auc", "tpr", "at_fpr")} | patients
            fact["auc_high"] = round(combined["auc_interval"][1], 4)
        return fact, f"the privacy audit is {verdict.outcome}: {reasons}" if refused and self.mode != "off" else None


def is_audit_fact(value: Any) -> bool:
    """Return whether a value is what `Gate.clear` lets travel: an outcome, and no number of a single image."""
    if not isinstance(value, dict) or not is_reason(value.get("override")):
        return False
    if value.keys() == {"outcome", "override"}:
        return value["outcome"] in ("passed", "failed", "inconclusive", "none")
    shares = ("auc", "auc_high", "tpr", "at_fpr")
    return (
        value.keys() == {"outcome", "override", *shares, *_PATIENTS}
        and value["outcome"] in ("passed", "failed", "inconclusive")
        and all(_is_share(value[key]) for key in shares)
        and all(is_count(value[key]) for key in _PATIENTS)
    )


def audit_words(fact: Mapping[str, Any] | None) -> str:
    """Return what a history says of an audit, for people."""
    if fact is None:
        return "no privacy audit"
    override = f"; released nevertheless: {fact['override']}" if fact["override"] is not None else ""
    if fact["outcome"] == "none":
        return f"no privacy audit{override}"
    if "auc" not in fact:
        return f"privacy audit {fact['outcome']}, of so few patients that its numbers are withheld{override}"
    return (
        f"privacy audit {fact['outcome']}: AUC {fact['auc']:.2f}, at most {fact['auc_high']:.2f}, "
        f"{fact['member_patients']} patients against {fact['other_patients']}{override}"
    )


def is_reason(value: Any) -> bool:
    """Return whether a value can be the reason of an override: None, or a printable line of at most `MAX_REASON`."""
    return value is None or (isinstance(value, str) and 1 <= len(value) <= MAX_REASON and value.isprintable())


@dataclass(frozen=True)
class Verdict:
    """What a policy makes of an audit, and why."""

    outcome: Outcome
    reasons: tuple[str, ...]


def check_audit(report: Any) -> None:
    """Check the form of a report. Raises ValueError, KeyError, TypeError or AttributeError where it is not sound."""
    if report["format"] != AUDIT_FORMAT:
        raise ValueError(f"its format is {report['format']!r}, this version reads {AUDIT_FORMAT}")
    sound = (
        is_digest(report["checkpoint"])
        and is_digest(report["run"])
        and is_name(report["site"])
        and is_moment(report["created_at"])
        and all(is_count(report["counts"][key]) for key in ("members", "others", "member_patients", "other_patients"))
        and isinstance(report["attacks"], list)
        and 1 <= len(report["attacks"]) <= 100
        and isinstance(report["copies"], list)
        and isinstance(report["networks"], list)
        and all(map(is_name, report["networks"]))
        and isinstance(report["doubts"], list)
        and all(isinstance(doubt, str) for doubt in report["doubts"])
    )
    for attack in (*report["attacks"], report["combined"]):
        low, high = attack["auc_interval"]
        shares = [attack[key] for key in ("auc", "p", "tpr", "at_fpr", "tpr_p")]
        sound = sound and is_name(attack["name"]) and isinstance(attack["counts"], bool)
        sound = sound and all(_is_share(value) for value in (low, high, *shares))
    for space in report["copies"]:
        sound = sound and is_name(space["name"]) and isinstance(space["counts"], bool)
        shares = [space[key] for key in _COPY_SHARES]
        sound = sound and all(map(_is_share, shares))
    if not sound:
        raise ValueError("a value is missing or out of its range")


def _is_share(value: Any) -> bool:
    return is_number(value) and 0 <= value <= 1


def judge(report: Mapping[str, Any], policy: Policy) -> Verdict:
    """Return what a policy makes of a checked audit.

    Failed: an attack or a copy is found, so surely that luck would do it in `alpha` of all audits (Holm 1979, over all tests
    together). Inconclusive: nothing is found, but a larger leak than is allowed could have been missed. Passed: neither.
    """
    attacks = [attack for attack in (*report["attacks"], report["combined"]) if attack["counts"]]
    spaces = [space for space in report["copies"] if space["counts"]]
    tests = [
        (a["tpr_p"], f"attack {a['name']} finds {_percent(a['tpr'])} at {_percent(a['at_fpr'])} false alarms")
        for a in attacks
    ]
    tests += [(space[key], f"{words} ({space['name']})") for space in spaces for key, words in _COPIES.items()]
    large = [a for a in attacks if a["auc_interval"][1] > policy.max_auc]
    tests += [(a["p"], f"attack {a['name']} tells members from others with an AUC of {a['auc']:.2f}") for a in large]
    small = [(a["p"], "") for a in attacks if a not in large]  # found or not, they are below what is allowed
    adjusted = holm([p for p, _ in tests + small])
    found = [words for (_, words), p in zip(tests, adjusted, strict=False) if p < policy.alpha]
    found += [
        f"{_percent(space['duplicates'])} of the training images have a duplicate among the generated ones ({space['name']})"
        for space in spaces
        if space["duplicates"] > space["other_duplicates"]
    ]
    if found:
        return Verdict("failed", tuple(found))
    doubts = list(report["doubts"])
    few = min(report["counts"]["member_patients"], report["counts"]["other_patients"])
    if few < policy.min_patients:
        doubts.append(f"there are {few} patients on one side, fewer than {policy.min_patients}: too few to tell")
    high = report["combined"]["auc_interval"][1]
    if high > policy.max_auc:
        allowed = f"{policy.max_auc:.2f} is allowed"
        doubts.append(f"an AUC of up to {high:.2f} cannot be excluded, {allowed}: too few images to tell")
    if len(adjusted) / (PERMUTATIONS + 1) >= policy.alpha:
        doubts.append(
            f"so few false alarms (alpha {policy.alpha:g}) cannot be told by {PERMUTATIONS} draws for {len(adjusted)} tests"
        )
    if doubts:
        return Verdict("inconclusive", tuple(doubts))
    return Verdict(
        "passed", (f"no attack found more than is allowed; together they reach an AUC of at most {high:.2f} (95 %)",)
    )


_PATIENTS = ("member_patients", "other_patients")
_COPY_SHARES = ("nearest_member", "expected", "nearest_p", "close", "close_p", "duplicates", "other_duplicates")
_COPIES = {
    "nearest_p": "generated images are nearer to training images than to others",
    "close_p": "more generated images are close to a training image than the control allows",
}


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for that they are several (Holm 1979): one below 0.05 is found by luck in 5 % of audits."""
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    result, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        result[i] = largest
    return result
