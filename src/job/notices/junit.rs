//! `--junit`: the form that Jenkins and GitLab read.
//!
//! A test case for the job and one for each gate, so that the report is red exactly where the exit
//! code is not 0. Pictures are no test cases: a million of them would be a report that nobody opens.

use std::fmt::Write as _;

use super::{Ended, Exit, failure, grouped};

/// What became of a test case.
enum Verdict {
    Passed,
    Failed { kind: &'static str, message: String, text: String },
    Skipped(String),
}

struct Case {
    name: String,
    seconds: f64,
    verdict: Verdict,
}

/// The report as an XML document.
pub(super) fn document(ended: &Ended<'_>) -> String {
    let cases = cases(ended);
    let count = |wanted: fn(&Verdict) -> bool| cases.iter().filter(|c| wanted(&c.verdict)).count();
    let failures = count(|verdict| matches!(verdict, Verdict::Failed { .. }));
    let skipped = count(|verdict| matches!(verdict, Verdict::Skipped(_)));
    let (tests, seconds) = (cases.len(), ended.report.map_or(0.0, |report| report.seconds));
    let totals = format!(
        r#"name="haul" tests="{tests}" failures="{failures}" errors="0" time="{seconds:.3}""#
    );
    // The schema wants no zone; it is UTC.
    let time = humantime::format_rfc3339_seconds(ended.time).to_string();
    let time = time.trim_end_matches('Z');
    let output = attribute(ended.output);
    let exit = ended.exit as u8;

    let mut xml = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
    let mut put = |text: std::fmt::Arguments<'_>| {
        // Writing to a String cannot fail.
        let _ = xml.write_fmt(text);
    };
    put(format_args!("<testsuites {totals}>\n"));
    put(format_args!("  <testsuite {totals} skipped=\"{skipped}\" timestamp=\"{time}\">\n"));
    put(format_args!("    <properties>\n"));
    put(format_args!("      <property name=\"output\" value=\"{output}\"/>\n"));
    put(format_args!("      <property name=\"exit\" value=\"{exit}\"/>\n"));
    put(format_args!("    </properties>\n"));
    for Case { name, seconds, verdict } in &cases {
        let name = attribute(name);
        put(format_args!(
            "    <testcase classname=\"haul\" name=\"{name}\" time=\"{seconds:.3}\">"
        ));
        match verdict {
            Verdict::Passed => {}
            Verdict::Failed { kind, message, text } => put(format_args!(
                "<failure type=\"{kind}\" message=\"{}\">{}</failure>",
                attribute(message),
                content(text)
            )),
            Verdict::Skipped(message) => {
                put(format_args!("<skipped message=\"{}\"/>", attribute(message)));
            }
        }
        put(format_args!("</testcase>\n"));
    }
    put(format_args!("    <system-out>{}</system-out>\n", content(&said(ended))));
    put(format_args!("  </testsuite>\n</testsuites>\n"));
    xml
}

fn cases(ended: &Ended<'_>) -> Vec<Case> {
    let job = match ended.trouble() {
        None => Verdict::Passed,
        Some(message) => {
            let kind = if ended.exit == Exit::SomeFailed { "pictures" } else { "job" };
            let text = format!("exit code {}\n{}", ended.exit as u8, pictures(ended));
            Verdict::Failed { kind, message, text }
        }
    };
    let seconds = ended.report.map_or(0.0, |report| report.seconds);
    let mut cases = vec![Case { name: "job".into(), seconds, verdict: job }];
    for gate in ended.report.iter().flat_map(|report| &report.gates) {
        let message = format!("measured: {}", gate.measured);
        let verdict = match gate.holds {
            true => Verdict::Passed,
            false => Verdict::Failed { kind: "gate", text: gate.to_string(), message },
        };
        cases.push(Case { name: format!("gate: {}", gate.expression), seconds: 0.0, verdict });
    }
    // A gate that nobody could look at did not hold, and was not broken either.
    let judged = ended.report.is_some_and(|report| report.gates.len() == ended.gates.len());
    if !judged {
        for gate in ended.gates {
            let verdict = Verdict::Skipped("the job is not complete".into());
            cases.push(Case { name: format!("gate: {gate}"), seconds: 0.0, verdict });
        }
    }
    cases
}

/// What people would have read on stderr, and which pictures failed.
fn said(ended: &Ended<'_>) -> String {
    let mut text = ended.report.map_or_else(String::new, super::Report::text);
    if let Some(reason) = ended.reason {
        text.push_str(reason);
        text.push('\n');
    }
    text + &pictures(ended)
}

/// The failed pictures, a line each.
fn pictures(ended: &Ended<'_>) -> String {
    let mut text = String::new();
    if !ended.failures.is_empty() {
        text.push_str("failed pictures:\n");
    }
    for line in ended.failures {
        let _ = writeln!(text, "  {}", failure(line));
    }
    if ended.unnamed() > 0 && !ended.failures.is_empty() {
        let _ = writeln!(text, "  … and {} more", grouped(ended.unnamed()));
    }
    text
}

/// Text between tags.
fn content(text: &str) -> String {
    escape(text, |c| match c {
        '\r' => Some("&#13;"),
        _ => None,
    })
}

/// Text in an attribute, whose line breaks and tabs a reader would otherwise make spaces of.
fn attribute(text: &str) -> String {
    escape(text, |c| match c {
        '"' => Some("&quot;"),
        '\t' => Some("&#9;"),
        '\n' => Some("&#10;"),
        '\r' => Some("&#13;"),
        _ => None,
    })
}

fn escape(text: &str, further: fn(char) -> Option<&'static str>) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            // What XML 1.0 has no way to say, not even as a reference.
            '\u{0}'..='\u{8}'
            | '\u{b}'
            | '\u{c}'
            | '\u{e}'..='\u{1f}'
            | '\u{fffe}'
            | '\u{ffff}' => {
                escaped.push('\u{fffd}');
            }
            c => match further(c) {
                Some(reference) => escaped.push_str(reference),
                None => escaped.push(c),
            },
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use roxmltree::{Document, Node};

    use super::super::tests::{ended, failed, report};
    use super::*;
    use crate::job::GateResult;

    fn named<'a, 'b>(document: &'a Document<'b>, name: &str) -> Vec<Node<'a, 'b>> {
        document.descendants().filter(|node| node.has_tag_name(name)).collect()
    }

    /// Names of the test cases, each with the element in it.
    fn cases_of(xml: &str) -> Vec<(String, String)> {
        let document = Document::parse(xml).unwrap_or_else(|error| panic!("{error}: {xml}"));
        let suite = named(&document, "testsuite")[0];
        let cases = named(&document, "testcase");
        let broken = cases.iter().filter(|c| c.children().any(|n| n.has_tag_name("failure")));
        assert_eq!(suite.attribute("tests").unwrap(), cases.len().to_string());
        assert_eq!(suite.attribute("failures").unwrap(), broken.count().to_string());
        let inside = |case: &Node<'_, '_>| {
            let child = case.first_element_child();
            child.map_or("", |child| child.tag_name().name()).to_owned()
        };
        cases.iter().map(|c| (c.attribute("name").unwrap().to_owned(), inside(c))).collect()
    }

    fn gate(expression: &str, holds: bool) -> GateResult {
        let measured = "3%, 3 of 100".to_owned();
        GateResult { expression: expression.to_owned(), value: 3.0, holds, measured }
    }

    #[test]
    fn a_case_for_the_job_and_one_for_each_gate() {
        let gates = vec![gate("errors < 2%", false), gate("class a\"b <> >= 0", true)];
        let report = super::super::Report { gates, ..report() };
        let texts = ["errors < 2%", "class a\"b <> >= 0"].map(str::to_owned);
        let ended = Ended { gates: &texts, ..ended(Exit::Gate, Some(&report), &[]) };
        let pair = |name: &str, inside: &str| (name.to_owned(), inside.to_owned());
        let expected = [
            pair("job", ""),
            pair("gate: errors < 2%", "failure"),
            pair("gate: class a\"b <> >= 0", ""),
        ];
        assert_eq!(cases_of(&document(&ended)), expected);

        // Not complete: the gates were not looked at.
        let unjudged = super::super::Report { gates: Vec::new(), ..report.clone() };
        let ended = Ended { exit: Exit::Interrupted, report: Some(&unjudged), ..ended };
        let expected = [
            pair("job", "failure"),
            pair("gate: errors < 2%", "skipped"),
            pair("gate: class a\"b <> >= 0", "skipped"),
        ];
        assert_eq!(cases_of(&document(&ended)), expected);
        // Not even opened.
        let ended = Ended { exit: Exit::Refused, reason: Some("no model"), report: None, ..ended };
        assert_eq!(cases_of(&document(&ended)), expected);
    }

    #[test]
    fn failed_pictures_are_listed_and_the_rest_counted() {
        let report = report();
        let failures: Vec<_> = (0..100).map(|i| failed(&format!("{i}.jpg"), "truncated")).collect();
        let xml = document(&ended(Exit::SomeFailed, Some(&report), &failures));
        assert_eq!(cases_of(&xml), [("job".to_owned(), "failure".to_owned())]);
        let parsed = Document::parse(&xml).unwrap();
        let failure = named(&parsed, "failure")[0];
        assert_eq!(failure.attribute("message").unwrap(), "4,214 of 5,000 pictures failed");
        let said = named(&parsed, "system-out")[0].text().unwrap();
        assert!(said.contains("\n  99.jpg: truncated: the picture is bad\n  … and 4,114 more\n"));
        assert_eq!(named(&parsed, "testsuite")[0].attribute("timestamp").unwrap().len(), 19);
    }

    #[test]
    fn names_with_everything_in_them_come_back() {
        let nasty = "a<b>&\"']]>\u{0}\u{8}\u{fffe}\u{1f980}\r\n\tend.jpg";
        let failures = [failed(nasty, "empty")];
        let reason = Some(nasty);
        let ended = Ended { reason, ..ended(Exit::Failed, None, &failures) };
        let xml = document(&ended);
        let parsed = Document::parse(&xml).unwrap();
        let message = named(&parsed, "failure")[0].attribute("message").unwrap().to_owned();
        assert_eq!(message, "a<b>&\"']]>\u{fffd}\u{fffd}\u{fffd}\u{1f980}\r\n\tend.jpg");
        let said = named(&parsed, "system-out")[0].text().unwrap();
        let expected = "  a<b>&\"']]>\\u{0}\\u{8}\u{fffd}\u{1f980}\\r\\n\\tend.jpg: empty: the picture is bad\n";
        assert!(said.contains(expected), "{said}");
    }
}
