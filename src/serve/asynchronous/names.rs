//! Names of objects, made of what somebody who is not trusted asks for.

use crate::serve::problem::RuntimeProblem;

/// The longest name of a file.
const SEGMENT: usize = 255;

/// The longest InferenceId.
const ID: usize = 64;

/// What names of failures end in, and nothing else does.
pub(super) const FAILURE: &str = "-error.out";

/// Whether an InferenceId can be part of a name.
pub(super) fn is_safe(id: &str) -> bool {
    let fits = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    // Its result would be called as another one's failure.
    let ends = !id.ends_with("-error");
    (1..=ID).contains(&id.len()) && !id.starts_with('.') && ends && id.chars().all(fits)
}

/// The InferenceId that a client has chosen: printable, and short.
///
/// # Errors
/// What is wrong with it.
pub(super) fn inference_id(id: &str) -> Result<String, RuntimeProblem> {
    match (1..=ID).contains(&id.len()) && !id.chars().any(char::is_control) {
        true => Ok(id.to_owned()),
        false => Err(wrong("InferenceId", id, "it has 1 to 64 printable characters")),
    }
}

/// `Filename`: one name of at most 32 characters with at most one dot.
///
/// # Errors
/// What is wrong with it.
pub(super) fn filename(name: &str) -> Result<String, RuntimeProblem> {
    let fits = (1..=32).contains(&name.len())
        && name.matches('.').count() <= 1
        && !name.starts_with('.')
        && !name.contains(['/', '\\'])
        && !name.ends_with(FAILURE)
        && !is_url(name)
        && !name.chars().any(char::is_control);
    match fits {
        true => Ok(name.to_owned()),
        false => Err(wrong(
            "Filename",
            name,
            "it is a name of 1 to 32 characters with at most one dot, which is not its first, \
             without slashes, and does not end in `-error.out`",
        )),
    }
}

/// `S3OutputPathExtension`: folders below the output, without slashes around them.
///
/// # Errors
/// What is wrong with it.
pub(super) fn extension(path: &str) -> Result<String, RuntimeProblem> {
    let inner = path.strip_suffix('/').unwrap_or(path);
    // A leading dot is `.` or `..`, or a folder of ours.
    let folder = |name: &str| {
        let fits = !name.is_empty() && name.len() <= SEGMENT;
        fits && !name.starts_with('.') && !name.ends_with(FAILURE)
    };
    let fits = (1..=512).contains(&path.len())
        && !is_url(path)
        && !path.contains('\\')
        && !path.chars().any(char::is_control)
        && inner.split('/').all(folder);
    match fits {
        true => Ok(inner.to_owned()),
        false => Err(wrong(
            "S3OutputPathExtension",
            path,
            "it is a relative path of 1 to 512 characters, of names that do not begin with a dot \
             and do not end in `-error.out`",
        )),
    }
}

fn is_url(text: &str) -> bool {
    let text = text.to_ascii_lowercase();
    ["s3:", "http:", "https:"].iter().any(|scheme| text.starts_with(scheme))
}

fn wrong(parameter: &str, value: &str, what: &str) -> RuntimeProblem {
    let value = crate::store::one_line(value);
    RuntimeProblem::validation(&format!("{parameter} is `{value}`; {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_leads_out_of_the_output() {
        for fine in ["a", "a.out", "result 1.json", "A-b_c", &"x".repeat(32)] {
            assert_eq!(filename(fine).unwrap(), fine);
        }
        for wrong in [
            "",
            "..",
            ".",
            ".a",
            "a.b.c",
            "a/b",
            "/a",
            "a\\b",
            "a\nb",
            "a\0",
            "s3:a",
            "HTTPS:a",
            "a-error.out",
            "../a",
            &"x".repeat(33),
        ] {
            assert!(filename(wrong).is_err(), "{wrong:?}");
        }
        assert_eq!(extension("a/b c/d.e").unwrap(), "a/b c/d.e");
        assert_eq!(extension("a/").unwrap(), "a");
        for wrong in [
            "",
            "/",
            "/a",
            "a//b",
            "..",
            "a/..",
            "a/../b",
            "./a",
            "a/./b",
            ".hidden/a",
            "a\\b",
            "a\x1b",
            "s3://b/a",
            "https://a/b",
            "a//",
            "a/b-error.out",
            &"x".repeat(256),
            &"x/".repeat(257),
        ] {
            assert!(extension(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn only_a_safe_id_becomes_a_name() {
        for safe in ["a", "A.b_c-1", &"x".repeat(64)] {
            assert!(is_safe(safe) && inference_id(safe).is_ok(), "{safe}");
        }
        for id in ["a/b", "..", ".a", "a b", "ü", "a:b", "a-error"] {
            assert!(!is_safe(id) && inference_id(id).is_ok(), "{id}");
        }
        for wrong in ["", "a\nb", &"x".repeat(65)] {
            assert!(inference_id(wrong).is_err(), "{wrong:?}");
        }
    }
}
