//! Why an event has no result, as Lambda tells it to whoever sent it.

use lambda_runtime::Diagnostic;

use crate::serve::problem::Problem;

/// A function error: `errorType` and `errorMessage`.
#[derive(Clone, Debug)]
pub(super) struct Failed {
    /// A stable word for programs, as in a line's `error` or a response's.
    pub(super) kind: String,
    /// A sentence for people.
    pub(super) message: String,
}

impl Failed {
    pub(super) fn new(kind: &str, message: impl Into<String>) -> Failed {
        Failed { kind: kind.to_owned(), message: message.into() }
    }

    /// The event is none of those that there are.
    pub(super) fn malformed(message: impl Into<String>) -> Failed {
        Failed::new("bad_event", message)
    }
}

impl From<Problem> for Failed {
    fn from(problem: Problem) -> Failed {
        Failed::new(problem.code, problem.message)
    }
}

impl From<Failed> for Diagnostic {
    fn from(failed: Failed) -> Diagnostic {
        Diagnostic { error_type: failed.kind, error_message: failed.message }
    }
}
