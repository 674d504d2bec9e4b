//! A read or a write that is under way.

use super::{ReadError, StoreError};

/// The bytes of an object, or what kept us from them: there, or on their way. Dropping it ends that.
pub struct Reading(Box<dyn FnOnce() -> Result<Vec<u8>, ReadError> + Send>);

impl Reading {
    /// One that has ended.
    #[must_use]
    pub fn done(result: Result<Vec<u8>, ReadError>) -> Reading {
        Reading(Box::new(move || result))
    }

    /// One whose end `wait` waits for.
    pub fn under_way(
        wait: impl FnOnce() -> Result<Vec<u8>, ReadError> + Send + 'static,
    ) -> Reading {
        Reading(Box::new(wait))
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// As [`super::Source::read`].
    pub fn wait(self) -> Result<Vec<u8>, ReadError> {
        (self.0)()
    }
}

/// A write that is done, or on its way.
pub struct Writing(Box<dyn FnOnce() -> Result<(), StoreError> + Send>);

impl Writing {
    /// One that is done.
    #[must_use]
    pub fn done() -> Writing {
        Writing(Box::new(|| Ok(())))
    }

    /// One whose end `wait` waits for.
    pub(super) fn under_way(
        wait: impl FnOnce() -> Result<(), StoreError> + Send + 'static,
    ) -> Writing {
        Writing(Box::new(wait))
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When the bytes could not be written.
    pub fn wait(self) -> Result<(), StoreError> {
        (self.0)()
    }
}

impl std::fmt::Debug for Writing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Writing")
    }
}

impl std::fmt::Debug for Reading {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Reading")
    }
}
