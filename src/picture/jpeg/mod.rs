//! JPEG, strictly: complete or an error.
//!
//! zune-jpeg decodes, but it fills what is missing without a word, even in its strict mode, and
//! guesses colours otherwise than libjpeg. So [`head`] and [`walk`] read the file's structure
//! first, and the decoder sees only what they have checked, written anew: no metadata, components
//! named so that the colours are libjpeg's, and behind the last scan bits that no Huffman table
//! may decode, so that data which ends early is an error there.

mod colour;
mod head;
mod pixels;
mod walk;

pub(super) use head::header;
pub(super) use pixels::pixels;
