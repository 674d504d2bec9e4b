//! From candidates to an analysis: what is the same wherever a picture was computed.

use std::any::Any;

use super::work::{Annotate, Found};
use crate::picture::{Letterbox, Mark, Picture, PictureError, annotate};
use crate::yolo::{Candidate, Nms, NmsOptions};

/// The boxes that are kept, in pixels of the picture.
pub(super) fn boxes(
    nms: &mut Nms,
    options: &NmsOptions,
    candidates: &mut Vec<Candidate>,
    geometry: &Letterbox,
) -> Vec<Found> {
    nms.run(options, candidates);
    let found = |kept: &Candidate| Found {
        class: kept.class,
        score: kept.score,
        bbox: geometry.to_picture(kept.bbox),
    };
    candidates.iter().map(found).collect()
}

/// The picture's file with its boxes.
pub(super) fn draw(
    picture: &Picture,
    found: &[Found],
    how: &Annotate,
) -> Result<Vec<u8>, PictureError> {
    let mark = |one: &Found| Mark {
        bbox: one.bbox,
        class: one.class,
        label: how.labels.get(one.class as usize).map_or("", String::as_str),
        score: one.score,
    };
    annotate(picture, &found.iter().map(mark).collect::<Vec<_>>(), how.encoding)
}

/// What a panic said.
pub(super) fn said(panic: &(dyn Any + Send)) -> String {
    let text = panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned());
    text.unwrap_or_else(|| "without a message".to_owned())
}
