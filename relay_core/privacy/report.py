"""The report of a privacy audit: as Markdown, as a figure, and the closest pairs as a picture for the site's own eyes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from relay_core.bundle import Policy, Verdict, day
from relay_core.files import write_atomically
from relay_core.metrics import png, sample_grid, table_row
from relay_core.privacy.audit import Pairs
from relay_core.texts import markdown

OUTCOMES = {
    "passed": "Passed: no attack found anything, and a leak larger than the policy allows is excluded.",
    "failed": "Failed: something of the training images can be found out from these networks.",
    "inconclusive": "Inconclusive: nothing was found, but this test was too weak to say that nothing is there.",
}


def write_audit(report: Mapping[str, Any], verdict: Verdict, policy: Policy, pairs: Pairs | None, out: Path) -> list[Path]:
    """Write `audit.json`, `audit.md`, `audit.png` and, with generators, `closest.png` (patients' images: it stays here).

    Raises OSError.
    """
    written = [out / name for name in ("audit.json", "audit.md", "audit.png")]
    write_atomically(written[0], json.dumps(report, indent=1).encode())
    write_atomically(written[1], audit_text(report, verdict).encode())
    write_atomically(written[2], audit_figure(report, policy))
    if pairs is not None:
        written.append(out / "closest.png")
        rows = [("generated", pairs.generated, None, None), ("nearest training image", pairs.members, None, None)]
        side = pairs.members.shape[-1]
        sample_grid(rows, written[-1], 2, scale=max(1, round(96 / side)))
    return written


def audit_text(report: Mapping[str, Any], verdict: Verdict) -> str:
    """Return the report as Markdown."""
    counts, combined = report["counts"], report["combined"]
    reference = {
        "received": "the networks that this site received, which never saw its images",
        "shadow": "networks trained for a short while on half of the training images",
    }[report["reference"]["kind"]]
    head = ["attack", "AUC", "95 % interval", "found", "at false alarms", "AUC of the reference"]
    lines = [
        f"# Privacy audit of {markdown(report['site'])}",
        "",
        f"**{OUTCOMES[verdict.outcome]}**",
        "",
        *(f"- {markdown(reason)}" for reason in verdict.reasons),
        "",
        f"Checkpoint `{report['checkpoint'][:16]}`, strategy {markdown(report['strategy'])}, {day(report['created_at'])}: "
        f"{counts['members']} training images of {counts['member_patients']} patients against {counts['others']} test "
        f"images of {counts['other_patients']}. An attacker who has all networks of the bundle tries to tell them apart. "
        "AUC 0.5 is a coin's, 1 is certain. This audit would have found an AUC of "
        f"{combined['detectable_auc']:.2f} in four of five cases.",
        "",
        table_row(head),
        "|---|--:|--:|--:|--:|--:|",
        *(_row(attack) for attack in (*report["attacks"], combined)),
        "",
        f"Calibrated: the score minus that of a reference, {reference}. An attack in brackets does not count: its reference "
        "tells the two sets apart too, so they differ by themselves.",
    ]
    if (bound := combined["epsilon"]) is not None:
        shown = (
            f"at least {bound['epsilon']:.2f} (95 %), as the attack {markdown(bound['attack'].replace('_', ' '))} was right "
            f"about {bound['right']} of {bound['guesses']} pairs of a patient who was trained on and one who was not"
        )
        lines += [
            "",
            "Epsilon of differential privacy, if luck alone decided which patients were trained on: "
            f"{shown if bound['epsilon'] else 'no attack shows that it is above 0'}.",
        ]
    if report["copies"]:
        lines += [
            "",
            f"Copies, of {report['samples']} generated images:",
            "",
            table_row([
                "compared by", "nearest is a training image", "expected", "p", "close to one", "control", "p",
                "training images with a duplicate", "others",
            ]),
            "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
            *(
                table_row([
                    row["name"].replace("_", " "), f"{row['nearest_member']:.1%}", f"{row['expected']:.1%}",
                    f"{row['nearest_p']:.3f}", f"{row['close']:.1%}", f"{row['control']:.1%}", f"{row['close_p']:.3f}",
                    f"{row['duplicates']:.1%}", f"{row['other_duplicates']:.1%}",
                ])
                for row in report["copies"]
            ),
        ]  # fmt: skip
    if report["warnings"]:
        lines += ["", *(f"- {markdown(warning)}" for warning in report["warnings"])]
    lines += [
        "",
        "What an audit can and cannot say: docs/privacy.md. That no attack succeeded is no proof that none would.",
        "",
    ]
    return "\n".join(lines)


def _row(attack: Mapping[str, Any]) -> str:
    low, high = attack["auc_interval"]
    control = attack.get("control")
    name = markdown(attack["name"].replace("_", " "))
    return table_row([
        name if attack["counts"] else f"({name})", f"{attack['auc']:.3f}", f"{low:.3f} to {high:.3f}",
        f"{attack['tpr']:.1%}", f"{attack['at_fpr']:.0%}", f"{control['auc']:.3f}" if control else "",
    ])  # fmt: skip


def audit_figure(report: Mapping[str, Any], policy: Policy) -> bytes:
    """Return a PNG of each attack's AUC with its interval, beside chance and the policy's limit."""
    from matplotlib.figure import Figure

    attacks = [*report["attacks"], report["combined"]][::-1]
    figure = Figure(figsize=(7, 1.2 + 0.28 * len(attacks)), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    for place, attack in enumerate(attacks):
        low, high = attack["auc_interval"]
        colour = "#1f5fa8" if attack["counts"] else "#9a9a9a"
        axes.plot([low, high], [place, place], color=colour, linewidth=2)
        axes.plot(attack["auc"], place, "o", color=colour, markersize=5)
    axes.axvline(0.5, color="#6b6b6b", linewidth=1)
    axes.axvline(policy.max_auc, color="#b3261e", linewidth=1, linestyle="--")
    axes.set_yticks(range(len(attacks)), [attack["name"].replace("_", " ") for attack in attacks], fontsize=8)
    axes.set_xlim(0.2, 1.02)
    axes.set_xlabel("AUC, members against others (95 % interval); 0.5: chance; dashed: most that is allowed", fontsize=8)
    axes.tick_params(labelsize=8)
    return png(figure)
