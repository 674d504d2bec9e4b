"""From the figures of rounds.py to Markdown, SVG and JSON."""

import json
import re
from html import escape
from statistics import median

QUIET = 0.2  # cores that others may use without disturbing
STEADY = 0.85  # of the best peak that cores had in this run: below, somebody shares them
COLOURS = {"haul": "#c2410c", "peer": "#64748b"}


def present(values):
    return [value for value in values if value]


def spread(values, digits=1):
    values = present(values)
    return f"{median(values):.{digits}f} [{min(values):.{digits}f}, {max(values):.{digits}f}]"


def ratio(base, row):
    """Of the rates of the same round: median, smallest and largest; of steady rounds, if there are any."""
    pairs = [(b / r, all(steady)) for b, r, *steady in
             zip(base["rates"], row["rates"], base["steady"], row["steady"]) if b and r]
    counted = [value for value, steady in pairs if steady] or [value for value, _ in pairs]
    return spread(counted, 2) if counted else ""


def peak_of(result, precision):
    """The most that one core did in any round, in GFLOP/s, with what is best for a precision."""
    peaks = {key: max(values) for key, values in result.get("peaks", {}).items() if values}
    if precision == "f32":
        return peaks.get("f32_fma")
    return max(peaks.values(), default=None)


def table(section, result):
    bases = [row for row in section["rows"] if row["base"] and present(row["rates"])]
    flops = any(row["gflop"] for row in section["rows"])
    workers = 1 if section["section"] == "latency" else result["workers"]
    head = ["", "images/s"]
    head += ["ms for one picture on a core", "GFLOP/s", "share of the best peak"] if flops else []
    thrift = any(present(row["per_core_second"]) for row in section["rows"])
    head += ["images per core-second"] if thrift else []
    head += [f"{base['name']}, times this" for base in bases] + ["others' cores"]
    lines = ["| " + " | ".join(head) + " |", "| --- |" + " ---: |" * (len(head) - 1)]
    for row in section["rows"]:
        if not present(row["rates"]):
            lines.append(f"| {row['name']} | not run |" + " |" * (len(head) - 2))
            continue
        middle = median(present(row["rates"]))
        cells = [row["name"], spread(row["rates"])]
        if flops:
            work = middle * row["gflop"]
            peak = peak_of(result, row["precision"])
            cells += [f"{1000 * workers / middle:.1f}", f"{work:.0f}", f"{work / workers / peak:.0%}" if peak else ""]
        if thrift:
            known = present(row["per_core_second"])
            cells.append(f"{median(known):.1f}" if known else "")
        cells += ["" if base is row else ratio(base, row) for base in bases]
        cells.append(f"{median([o for o in row['others'] if o is not None]):.2f}")
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def not_run(section):
    """Who has no figures, and why; those with the same reason together."""
    reasons = {}
    for row in section["rows"]:
        if row["why"]:
            reasons.setdefault(row["why"], []).append(row["name"])
    return [f"{'; '.join(names)} ({why})" for why, names in reasons.items()]


def disturbed(section):
    known = {row["name"]: [o for o in row["others"] if o is not None] for row in section["rows"]}
    return [name for name, others in known.items() if others and median(others) > QUIET]


def markdown(result, name):
    machine = result["machine"]
    out = [
        "# haul and its peers", "",
        "Medians of rounds in which all took turns, with the smallest and the largest in brackets; ratios are taken "
        "within each round, so they need not be the ratios of the medians. \"Others' cores\" is what the rest of the machine used meanwhile; "
        "what was disturbed by more than a fifth of a core was measured again, while patience lasted, and so was what "
        f"began or ended with less than {STEADY:.0%} of the best peak of multiply-adds, as cores have that somebody shares. "
        "Ratios are of rounds in which neither was so, if there are any. "
        "Images per core-second, where known, is by the time that the processors worked for a program: others hardly change it.", "",
        f"- machine: {machine['cpu']} (family/model {machine['family']}), {machine['cores']} cores; {', '.join(machine['flags'])}",
        f"- date: {result['date']}",
        f"- command: `{result['command']}`: {result['rounds']} rounds of {result['seconds']:g} s",
        "- versions: " + ", ".join(f"{key} {value}" for key, value in result["versions"].items() if value != "used"),
    ]
    classes = [key.removeprefix("haul class ") for key, value in result["versions"].items() if value == "used"]
    out += [f"- numeric classes of haul: {', '.join(classes)}"] if classes else []
    names = {"f32_fma": "f32 FMA", "bf16_dot": "bf16 dot product", "bf16_tiles": "bf16 tiles"}
    peaks = [f"{names[key]} {spread(values, 0)}" for key, values in result.get("peaks", {}).items() if values]
    out += [f"- peak of each core while all work, GFLOP/s, each round: {'; '.join(peaks)}"] if peaks else []
    out += ["", f"![images a second]({name}.svg)"]
    for section in result["sections"]:
        out += ["", f"## {section['title']}", "", section["note"], "", *table(section, result)]
        if busy := disturbed(section):
            out += ["", f"Disturbed by others in most rounds, so no measure of: {'; '.join(busy)}."]
        steady = [value for row in section["rows"] for value in row["steady"] if value is not None]
        if not all(steady):
            out += ["", f"Cores were not at their best in {steady.count(False)} of {len(steady)} turns."]
        for line in not_run(section):
            out += ["", f"Not run: {line}."]
    return "\n".join(out) + "\n"


def svg(result):
    """Bars from zero at the median, a thin line from the smallest to the largest; a scale for each section."""
    left, bar, width, right = 300, 22, 420, 110
    parts, y = [], 12
    for section in result["sections"]:
        rows = [row for row in section["rows"] if present(row["rates"])]
        if not rows:
            continue
        y += 24
        parts.append(f'<text x="12" y="{y}" class="t">{escape(section["title"])}, images/s</text>')
        y += 10
        most = max(max(present(row["rates"])) for row in rows)
        for row in rows:
            rates = present(row["rates"])
            middle, low, high = (left + width * v / most for v in (median(rates), min(rates), max(rates)))
            colour = COLOURS["haul" if row["name"].startswith("haul") else "peer"]
            parts += [
                f'<text x="{left - 8}" y="{y + 15}" text-anchor="end">{escape(row["name"])}</text>',
                f'<rect x="{left}" y="{y + 3}" width="{middle - left:.1f}" height="{bar - 6}" fill="{colour}"/>',
                f'<path d="M{low:.1f} {y + 11}H{high:.1f}" stroke="#111"/>',
                f'<text x="{max(middle, high) + 6:.1f}" y="{y + 15}">{median(rates):.1f}</text>',
            ]
            y += bar
    y += 12
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + width + right} {y}" '
            f'width="{left + width + right}" height="{y}">\n'
            "<style>text{font:12px sans-serif;fill:#111}.t{font-weight:bold}</style>\n"
            '<rect width="100%" height="100%" fill="#fff"/>\n' + "\n".join(parts) + "\n</svg>\n")


def name_of(result):
    machine = result["machine"]
    words = f"peers {machine['cpu']} {machine['family']} {machine['cores']} cores"
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")


def write(result, folder):
    folder.mkdir(parents=True, exist_ok=True)
    name = name_of(result)
    (folder / f"{name}.md").write_text(markdown(result, name))
    (folder / f"{name}.svg").write_text(svg(result))
    (folder / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
