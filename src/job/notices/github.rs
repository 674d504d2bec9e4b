//! `--github`: what a step of GitHub Actions can say.
//!
//! Annotations are workflow commands on a line of output, one table goes to the step's summary, and
//! a few numbers to its outputs. GitHub shows ten errors and ten warnings of a step and drops the
//! rest without a word, and drops a summary over 1,024 KiB as a whole.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::{Ended, Exit, failure, grouped};
use crate::store::one_line;

/// Annotations of one kind that GitHub shows for a step.
const MOST_ANNOTATIONS: usize = 10;

/// What GitHub takes of a step's summary, with what earlier commands of the step wrote into it.
pub(super) const MOST_SUMMARY: u64 = 1024 * 1024;

/// What haul takes of that at most.
const OUR_SUMMARY: u64 = 64 * 1024;

/// The row that says that rows are missing.
const CUT: &str = "| … | cut short here |\n";

/// The annotations as lines to print: what broke first, then failed pictures by code.
pub(super) fn annotations(ended: &Ended<'_>) -> Vec<String> {
    let (mut errors, mut warnings) = (Vec::new(), Vec::new());
    if ended.exit != Exit::SomeFailed
        && let Some(trouble) = ended.trouble()
    {
        errors.push(("haul".to_owned(), trouble));
    }
    if let Some(report) = ended.report {
        for gate in report.gates.iter().filter(|gate| !gate.holds) {
            let text = format!("does not hold: {} (measured: {})", gate.expression, gate.measured);
            errors.push(("haul: gate".to_owned(), text));
        }
    }
    // A warning, unless failed pictures are why the step fails.
    let fatal = matches!(ended.exit, Exit::SomeFailed | Exit::Threshold);
    let pictures = if fatal { &mut errors } else { &mut warnings };
    for (code, count) in by_count(ended) {
        let mut named =
            ended.failures.iter().filter(|l| l.error.as_ref().is_some_and(|e| e.code == code));
        let text = match (named.next(), count) {
            (Some(line), 1) => failure(line),
            (Some(line), _) => format!("{}, … and {} more", failure(line), grouped(count - 1)),
            (None, _) => format!("{} × {code}", grouped(count)),
        };
        pictures.push(("haul: failed pictures".to_owned(), text));
    }
    let lines = [("error", errors), ("warning", warnings)].into_iter().flat_map(|(kind, all)| {
        let more = all.len().saturating_sub(MOST_ANNOTATIONS);
        // The last place says how many have none.
        let shown = if more > 0 { MOST_ANNOTATIONS - 1 } else { all.len() };
        let mut lines: Vec<String> =
            all[..shown].iter().map(|(t, m)| command(kind, t, m)).collect();
        if more > 0 {
            lines.push(command(kind, "haul", &format!("… and {} more of these", more + 1)));
        }
        lines
    });
    lines.collect()
}

/// A workflow command. It begins the line and nothing in it can end that, so that no name can begin
/// another one.
fn command(kind: &str, title: &str, message: &str) -> String {
    let data = |text: &str| text.replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A");
    let title = data(title).replace(':', "%3A").replace(',', "%2C");
    format!("::{kind} title={title}::{}", data(message))
}

/// Failed pictures by code, the most first: the committed ones, or else those that are named.
fn by_count(ended: &Ended<'_>) -> Vec<(String, u64)> {
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    for error in ended.failures.iter().filter_map(|line| line.error.as_ref()) {
        *counts.entry(error.code.clone()).or_default() += 1;
    }
    for (code, count) in ended.report.iter().flat_map(|report| &report.errors) {
        let known = counts.entry(code.clone()).or_default();
        *known = (*known).max(*count);
    }
    let mut counts: Vec<(String, u64)> = counts.into_iter().collect();
    counts.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    counts
}

/// One Markdown table for the step's summary, which holds `taken` bytes already. Empty where not
/// even the table's head has room.
pub(super) fn summary(ended: &Ended<'_>, taken: u64) -> String {
    let room = MOST_SUMMARY.saturating_sub(taken).min(OUR_SUMMARY) as usize;
    let state = ended.report.map_or("failed", |report| report.state.as_str());
    let exit = ended.exit as u8;
    let mark = if exit == 0 { "✅" } else { "❌" };
    let output = cell(ended.output);
    let mut rows =
        vec![format!("| {mark} haul | {state}, exit code {exit} |\n"), "| --- | --- |\n".into()];
    let mut row = |what: &str, value: &str| rows.push(format!("| {what} | {value} |\n"));
    if let Some(trouble) = ended.trouble() {
        row("why", &cell(&trouble));
    }
    row("results", &output);
    if let Some(report) = ended.report {
        let sofar = if report.plan_complete { "" } else { " so far" };
        let counts = [report.planned, report.ok, report.failed].map(grouped);
        let [planned, ok, failed] = counts;
        row("pictures", &format!("{planned} planned{sofar}, {ok} ok, {failed} failed"));
        for gate in &report.gates {
            let mark = if gate.holds { "✅" } else { "❌" };
            row(&format!("gate {}", cell(&gate.expression)), &format!("{mark} {}", gate.measured));
        }
        let mut classes: Vec<_> = report.classes.iter().collect();
        classes.sort_by(|a, b| b.1.cmp(a.1).then_with(|| a.0.cmp(b.0)));
        let found = classes.iter().take(20);
        let found = found.map(|(label, count)| format!("{} {}", cell(label), grouped(**count)));
        let mut found: Vec<String> = found.collect();
        if classes.len() > found.len() {
            found.push(format!("{} more classes", classes.len() - found.len()));
        }
        if !found.is_empty() {
            row("found", &found.join(", "));
        }
        if report.pictures > 0 {
            let (done, rate) = (grouped(report.pictures), report.images_per_second);
            row(
                "speed",
                &format!("{done} pictures in {:.1} s, {rate:.1} images/s", report.seconds),
            );
        }
    }
    for (code, count) in by_count(ended) {
        row(&format!("error {}", cell(&code)), &grouped(count));
    }
    for line in ended.failures {
        let error = line.error.as_ref().map_or("", |error| error.message.as_str());
        row(&cell(&line.image), &cell(error));
    }
    if ended.unnamed() > 0 && !ended.failures.is_empty() {
        row("…", &format!("and {} more failed pictures", grouped(ended.unnamed())));
    }
    // A line before it, so that whatever stands there does not run into the table.
    let mut text = String::from("\n");
    for (index, row) in rows.iter().enumerate() {
        if text.len() + row.len() + CUT.len() > room {
            if index < 2 {
                return String::new();
            }
            text.push_str(CUT);
            break;
        }
        text.push_str(row);
    }
    text
}

/// The step's outputs: numbers and fixed words only, so that none of them can hold a line break.
pub(super) fn outputs(ended: &Ended<'_>) -> String {
    let mut text = format!("exit_code={}\n", ended.exit as u8);
    if let Some(report) = ended.report {
        let broken = report.gates.iter().filter(|gate| !gate.holds).count();
        let detections: u64 = report.classes.values().sum();
        let _ = writeln!(text, "state={}", report.state);
        let _ = writeln!(text, "planned={}\nok={}", report.planned, report.ok);
        let _ = writeln!(text, "failed={}\ndetections={detections}", report.failed);
        let _ = writeln!(text, "gates_broken={broken}");
    }
    text
}

/// Text in a cell, where nothing is markup, a link or a mention.
fn cell(text: &str) -> String {
    let mut cell = String::with_capacity(text.len());
    for c in one_line(text).chars() {
        match c {
            // Plain in any place; the rest of ASCII's punctuation is not.
            ' ' | '-' | '/' | ',' | '.' | '%' | ';' | '(' | ')' => cell.push(c),
            c if c.is_ascii_punctuation() => {
                let _ = write!(cell, "&#{};", u32::from(c));
            }
            c => cell.push(c),
        }
    }
    cell.replace("www.", "www&#46;")
}

#[cfg(test)]
mod tests {
    use super::super::Report;
    use super::super::tests::{ended, failed, report};
    use super::*;
    use crate::job::GateResult;

    fn gate(holds: bool) -> GateResult {
        let expression = "errors < 2%".to_owned();
        GateResult { expression, value: 84.28, holds, measured: "84.28%, 4214 of 5000".into() }
    }

    #[test]
    fn what_broke_comes_first_and_pictures_by_code() {
        let report = Report { gates: vec![gate(false), gate(true)], ..report() };
        let failures = [failed("a/b.jpg", "truncated"), failed("c.jpg", "empty")];
        let said = annotations(&ended(Exit::Gate, Some(&report), &failures));
        let expected = [
            "::error title=haul%3A gate::does not hold: errors < 2%25 (measured: 84.28%25, 4214 of 5000)",
            "::warning title=haul%3A failed pictures::a/b.jpg: truncated: the picture is bad, … and 4,211 more",
            "::warning title=haul%3A failed pictures::c.jpg: empty: the picture is bad, … and 1 more",
        ];
        assert_eq!(said, expected);
        // Where pictures are why the step fails, they are errors.
        let said = annotations(&ended(Exit::SomeFailed, Some(&report), &failures));
        assert!(said.iter().all(|line| line.starts_with("::error ")), "{said:?}");
        assert!(annotations(&ended(Exit::Done, None, &[])).is_empty());
    }

    #[test]
    fn no_more_than_github_shows() {
        let errors = (0..14).map(|i| (format!("code_{i}"), 20 - i)).collect();
        let report = Report { gates: vec![gate(false); 12], errors, ..report() };
        let said = annotations(&ended(Exit::Gate, Some(&report), &[]));
        let of =
            |kind: &str| said.iter().filter(|l| l.starts_with(kind)).cloned().collect::<Vec<_>>();
        let (errors, warnings) = (of("::error "), of("::warning "));
        assert_eq!((errors.len(), warnings.len(), said.len()), (10, 10, 20));
        assert_eq!(errors[9], "::error title=haul::… and 3 more of these");
        assert_eq!(warnings[0], "::warning title=haul%3A failed pictures::20 × code_0");
        assert_eq!(warnings[9], "::warning title=haul::… and 5 more of these");
    }

    #[test]
    fn no_name_becomes_a_command_or_markup() {
        let nasty =
            "x\r\n::error::owned\n##[add-mask]%0A|<img src=x>[a](http://b)`c`*d*@e www.f.g.jpg";
        let failures = [failed(nasty, "empty")];
        let report = Report::default();
        let ended = Ended { reason: Some(nasty), ..ended(Exit::Failed, Some(&report), &failures) };
        for line in annotations(&ended) {
            assert!(!line.contains(['\n', '\r']), "{line}");
            assert!(
                line.starts_with("::error title=haul::x%0D%0A") || line.starts_with("::warning ")
            );
            assert!(line.contains("##[add-mask]%250A"), "{line}");
        }
        let text = summary(&ended, 0);
        let row = text.lines().find(|line| line.contains("owned")).unwrap();
        assert_eq!(row.matches('|').count(), 3, "{row}");
        assert!(!row.contains(['<', '[', '`', '*', '@']) && !row.contains("www."), "{row}");
        assert!(!row.contains("://"), "{row}");
        assert!(outputs(&ended).lines().all(|line| line.matches('=').count() == 1));
    }

    #[test]
    fn the_summary_is_one_table_and_keeps_within_its_room() {
        let report = Report { gates: vec![gate(false)], ..report() };
        let failures: Vec<_> = (0..100).map(|i| failed(&format!("{i}.jpg"), "truncated")).collect();
        let ended = ended(Exit::Gate, Some(&report), &failures);
        let whole = summary(&ended, 0);
        assert!(whole.starts_with("\n| ❌ haul | done, exit code 6 |\n| --- | --- |\n"), "{whole}");
        assert!(whole.contains("| gate errors &#60; 2% | ❌ 84.28%, 4214 of 5000 |\n"), "{whole}");
        assert!(whole.contains("| found | boat 7, a&#124;b 1 |\n"), "{whole}");
        assert!(whole.contains("| error truncated | 4,212 |\n"), "{whole}");
        assert!(whole.ends_with(
            "| 99.jpg | the picture is bad |\n| … | and 4,114 more failed pictures |\n"
        ));
        for row in whole.lines().skip(1) {
            assert_eq!(row.matches('|').count(), 3, "{row}");
        }
        // Long names: no more than our share.
        let long: Vec<_> = (0..100).map(|_| failed(&"n".repeat(4000), "truncated")).collect();
        let text = summary(&Ended { failures: &long, ..ended }, 0);
        assert!(
            text.len() <= 64 << 10 && text.len() > 50 << 10 && text.ends_with(CUT),
            "{}",
            text.len()
        );
        // Little room is left by others, or none.
        for room in [500, 90] {
            let text = summary(&ended, MOST_SUMMARY - room);
            assert!(text.len() as u64 <= room && text.ends_with(CUT), "{room}: {text}");
        }
        assert_eq!(summary(&ended, MOST_SUMMARY - 20), "");
        assert_eq!(summary(&ended, MOST_SUMMARY + 7), "");
    }
}
