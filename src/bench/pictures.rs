//! The pictures that are measured with.

use std::path::{Path, PathBuf};

use crate::engine::Input;
use crate::job::JobError;
use crate::picture::{Letterbox, Letterboxer, decode, probe};
use crate::pool::Params;

/// Most pictures held in memory: enough that none of them stays in a cache.
const MOST: usize = 64;

/// A letterboxed picture.
#[derive(Clone, Debug)]
pub(super) struct Picture {
    pub(super) width: usize,
    pub(super) height: usize,
    rgb: Vec<u8>,
}

impl Picture {
    #[cfg(test)]
    pub(super) fn new(width: usize, height: usize, rgb: Vec<u8>) -> Picture {
        Picture { width, height, rgb }
    }

    pub(super) fn input(&self) -> Input<'_> {
        Input { width: self.width, height: self.height, rgb: &self.rgb }
    }
}

/// All files with the suffix of a picture below `path`, by name; or `path` itself.
pub(super) fn find(path: &Path) -> Result<Vec<PathBuf>, JobError> {
    let wrong = |path: &Path, error: std::io::Error| {
        JobError::Usage(format!("--images `{}`: {error}", path.display()))
    };
    if std::fs::metadata(path).map_err(|error| wrong(path, error))?.is_file() {
        return Ok(vec![path.to_owned()]);
    }
    let (mut files, mut folders) = (Vec::new(), vec![path.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).map_err(|error| wrong(&folder, error))? {
            let entry = entry.map_err(|error| wrong(&folder, error))?;
            let (path, kind) = (entry.path(), entry.file_type());
            if kind.as_ref().is_ok_and(std::fs::FileType::is_dir) {
                folders.push(path);
            } else if crate::job::is_picture_name(&path) {
                files.push(path);
            }
        }
    }
    files.sort();
    match files.is_empty() {
        true => Err(JobError::Empty(format!("no picture found in `{}`", path.display()))),
        false => Ok(files),
    }
}

/// Some of `files`, evenly spread, as the network sees them. Those that cannot be decoded are left
/// out.
pub(super) fn letterboxed(files: &[PathBuf], params: &Params) -> Result<Vec<Picture>, JobError> {
    let (mut pictures, mut letterboxer) = (Vec::new(), Letterboxer::new());
    let mut last = None;
    for file in files.iter().step_by(files.len().div_ceil(MOST)) {
        let bytes = read(file)?;
        let made = probe(&bytes, &params.limits).and_then(|header| {
            let picture = decode(&bytes, &header, &params.limits)?;
            let geometry =
                Letterbox::new(picture.width, picture.height, params.imgsz, params.square);
            let rgb = letterboxer.run(&picture, &geometry)?.to_vec();
            let (width, height) = (geometry.width as usize, geometry.height as usize);
            Ok(Picture { width, height, rgb })
        });
        match made {
            Ok(picture) => pictures.push(picture),
            Err(error) => last = Some((file, error)),
        }
    }
    match (pictures.is_empty(), last) {
        (true, Some((file, error))) => Err(JobError::Usage(format!(
            "none of the pictures could be decoded; `{}`: {error}",
            file.display()
        ))),
        _ => Ok(pictures),
    }
}

/// A file's bytes.
pub(super) fn read(file: &Path) -> Result<Vec<u8>, JobError> {
    std::fs::read(file)
        .map_err(|error| JobError::Usage(format!("cannot read `{}`: {error}", file.display())))
}
