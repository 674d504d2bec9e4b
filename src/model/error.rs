//! Why a file is no model that haul can run.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

use crate::store::StoreError;
use crate::yolo::NetworkError;

/// A failed operation, the file it was about, and a likely cause.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ModelError {
    /// The file could not be read.
    #[error("reading the model `{path}` failed")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// What was given is no path and no address of S3.
    #[error("the model {0}")]
    Address(String),
    /// It lies in a bucket, and could not be copied from there.
    #[error(transparent)]
    Store(StoreError),
    /// The file is larger than any model.
    #[error("the model `{path}` has {bytes} bytes, more than {limit} (is it a model?)")]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
    /// Neither of the two formats, or a relative that is not read.
    #[error(
        "`{path}` is {found}; haul reads the .pt files of Ultralytics YOLOv8 and .safetensors made by `haul model convert`, \
         also in a .tar.gz"
    )]
    Format {
        /// The file.
        path: PathBuf,
        /// What it looks like.
        found: String,
    },
    /// The file is damaged, or made to hurt.
    #[error("parsing the model `{path}` failed: {what} (is the file complete?)")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        what: String,
    },
    /// The pickle names something that is not plain data.
    #[error(
        "parsing the model `{path}` failed: its pickle refers to `{global}`, which no YOLOv8 checkpoint needs{hint}"
    )]
    Global {
        /// The file.
        path: PathBuf,
        /// Module and name.
        global: String,
        /// A guess, or nothing.
        hint: &'static str,
    },
    /// A sound checkpoint of something else.
    #[error("`{path}` is {what}; haul runs YOLOv8 detect")]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// A model of another task or family, or with a part that is not YOLOv8's.
        what: String,
    },
    /// A `.safetensors` without the metadata that says what the tensors mean.
    #[error("`{path}` {what}; make one with `haul model convert FILE.pt`")]
    Metadata {
        /// The file.
        path: PathBuf,
        /// What is missing or wrong.
        what: String,
    },
    /// A pack of weights that is damaged, or of another version of haul.
    #[error("the pack `{path}` cannot be used: {what}; make it again with `haul model pack`")]
    Pack {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// The tensors do not form the network.
    #[error("the tensors of `{path}` are not those of a YOLOv8 detect model")]
    Network {
        /// The file.
        path: PathBuf,
        /// The tensor at fault.
        #[source]
        source: NetworkError,
    },
}

/// The same without the path, as the parsers inside know it.
#[derive(Debug)]
pub(super) enum Fault {
    Malformed(String),
    Format(String),
    Global(String, &'static str),
    Unsupported(String),
    Metadata(String),
    Network(NetworkError),
}

impl Fault {
    pub(super) fn malformed(what: impl Into<String>) -> Self {
        Self::Malformed(what.into())
    }

    pub(super) fn at(self, path: &std::path::Path) -> ModelError {
        let path = path.to_path_buf();
        match self {
            Self::Malformed(what) => ModelError::Malformed { path, what },
            Self::Format(found) => ModelError::Format { path, found },
            Self::Global(global, hint) => ModelError::Global { path, global, hint },
            Self::Unsupported(what) => ModelError::Unsupported { path, what },
            Self::Metadata(what) => ModelError::Metadata { path, what },
            Self::Network(source) => ModelError::Network { path, source },
        }
    }
}

impl From<NetworkError> for Fault {
    fn from(error: NetworkError) -> Self {
        Self::Network(error)
    }
}
