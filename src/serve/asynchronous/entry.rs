//! What the queue keeps of a request, and of a notification.

use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

/// A request that was accepted.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Entry {
    /// What its client calls it.
    pub(super) inference_id: String,
    /// What is asked.
    pub(super) asked: Asked,
    /// The digest of what is asked, by which a repetition is known.
    pub(super) digest: String,
    /// Where its result goes.
    pub(super) output: Target,
    /// Where it is said why there is none.
    pub(super) failure: Target,
    /// When it was accepted, in milliseconds since 1970.
    pub(super) received: u64,
    /// When it was first begun.
    pub(super) begun: Option<u64>,
    /// When it was through.
    pub(super) ended: Option<u64>,
    /// How often it was begun.
    pub(super) attempts: u32,
    /// How often a fault of the store or of a worker ended it.
    pub(super) faults: u32,
    /// How often the server died while it was in progress.
    pub(super) deaths: u32,
    /// How far it is.
    pub(super) state: State,
}

/// What a request asks.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Asked {
    /// Where the picture is; else the body is kept beside this.
    pub(super) location: Option<String>,
    pub(super) content_type: Option<String>,
    pub(super) accept: Option<String>,
    /// Headers that can have options: the custom attributes, and ours.
    pub(super) headers: Vec<(String, String)>,
    pub(super) query: Option<String>,
    /// It must be begun within so many seconds.
    pub(super) ttl: u64,
    /// An attempt may take so many.
    pub(super) timeout: u64,
}

/// The name of an object, and the place that it is relative to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Target {
    /// A folder, or a prefix of a bucket. It is kept, since a later server may have another.
    pub(super) place: String,
    pub(super) name: String,
}

impl Target {
    /// The object, for clients and for the list of names that are taken.
    pub(super) fn location(&self) -> String {
        let slash = if self.place.ends_with('/') { "" } else { "/" };
        format!("{}{slash}{}", self.place, self.name)
    }
}

/// How far a request is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum State {
    /// It waits.
    Queued,
    /// It is fetched or worked on. Found at a start, it says that the last server died meanwhile.
    InProgress,
    /// What it came to is known and kept, and not published yet.
    Decided(Decision),
    /// What it came to is published.
    Ended(Decision),
}

/// What a request came to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Decision {
    /// It has a result.
    Completed {
        /// The result's media type.
        content_type: String,
    },
    /// It has none.
    Failed {
        code: String,
        message: String,
        /// The status that the real-time door would have answered with.
        status: u16,
    },
}

impl Entry {
    /// When it is too late to begin it, if it has not been begun.
    pub(super) fn expires(&self) -> Option<u64> {
        self.begun.is_none().then(|| self.received.saturating_add(self.asked.ttl * 1000))
    }

    /// What was made of it, if it is known.
    pub(super) fn decision(&self) -> Option<&Decision> {
        match &self.state {
            State::Queued | State::InProgress => None,
            State::Decided(decision) | State::Ended(decision) => Some(decision),
        }
    }

    /// The word for how far it is.
    pub(super) fn status(&self) -> &'static str {
        match &self.state {
            State::Queued => "Queued",
            State::InProgress | State::Decided(_) => "InProgress",
            State::Ended(Decision::Completed { .. }) => "Completed",
            State::Ended(Decision::Failed { .. }) => "Failed",
        }
    }
}

/// A notification that is owed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Notice {
    /// By which a receiver knows a repetition.
    pub(super) id: String,
    /// Where to.
    pub(super) url: String,
    /// The message.
    pub(super) message: String,
    /// Its subject, for people.
    pub(super) subject: String,
    /// Since when it is owed, in milliseconds since 1970.
    pub(super) since: u64,
}

/// Now, in milliseconds since 1970.
pub(super) fn now() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// A time in the form of RFC 3339.
pub(super) fn rfc3339(millis: u64) -> String {
    // The year 9999 is the last that the form knows.
    let time = SystemTime::UNIX_EPOCH + Duration::from_millis(millis.min(253_402_300_799_999));
    humantime::format_rfc3339_millis(time).to_string()
}
