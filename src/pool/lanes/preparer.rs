//! A worker that does not compute: it prepares pictures for devices, and answers what comes back.

use std::time::Instant;

use crossbeam_channel::Receiver;

use super::exchange::{Exchange, Next};
use super::guard::guarded;
use super::pending::{Claim, Filled, Pending, Prepared};
use super::station::{Doing, Feeding};
use crate::engine::Slot;
use crate::failpoint;
use crate::picture::{Decoder, Header, Letterbox, Letterboxer, probe};
use crate::pool::crash::SignalStack;
use crate::pool::work::{Failure, Params, Spent, Work};

/// What one such worker owns.
pub(in crate::pool) struct Preparer {
    decoder: Decoder,
    letterboxer: Letterboxer,
    exchange: Exchange,
    feeding: Option<Feeding>,
}

impl Preparer {
    pub(super) fn new(exchange: Exchange) -> Preparer {
        let feeding = Some(exchange.station.feeding());
        let (decoder, letterboxer) = (Decoder::new(), Letterboxer::new());
        Preparer { decoder, letterboxer, exchange, feeding }
    }

    /// Works until there are no more pictures, and all that were there are answered.
    pub(in crate::pool) fn serve(&mut self, queue: &Receiver<Work>) {
        let _signals = SignalStack::new();
        while let Some(next) = self.exchange.next(queue) {
            match next {
                Next::Computed(computed) => self.exchange.answer(computed),
                Next::Work(work) => self.prepare(work),
            }
        }
        self.feeding = None;
        self.exchange.drain();
    }

    /// Takes a picture to the devices, or answers why not.
    fn prepare(&mut self, work: Work) {
        let station = self.exchange.station.clone();
        let _preparing = station.count(Doing::Preparing);
        let Work { bytes, params, ticket, cancelled, note, reply } = work;
        let mut claim = Claim { params, ticket, cancelled, note, reply };
        let mut spent = Spent::default();
        let made = self.make(bytes, &mut claim, &mut spent);
        self.decoder.trim();
        let (slot, prepared) = match made {
            Ok(made) => made,
            Err(failure) => return claim.answer(Err(failure), spent),
        };
        let filled = Filled { slot, pending: Pending { claim, spent, prepared } };
        if let Err(refused) = station.put(filled) {
            let (Filled { pending, .. }, fault) = *refused;
            pending.claim.answer(Err(fault.into()), pending.spent);
        }
    }

    fn make(
        &mut self,
        bytes: Vec<u8>,
        claim: &mut Claim,
        spent: &mut Spent,
    ) -> Result<(Slot, Prepared), Failure> {
        let wanted = |claim: &Claim| match claim.is_cancelled() {
            true => Err(Failure::Cancelled),
            false => Ok(()),
        };
        wanted(claim)?;
        if let Some(fault) = self.exchange.station.dead() {
            return Err(fault.into());
        }
        let start = Instant::now();
        let header = guarded(claim.note.as_ref(), || probe(&bytes, &claim.params.limits))?
            .map_err(Failure::Picture)?;
        spent.decode = start.elapsed();
        self.exchange.memory(&mut claim.ticket, header.decode_bytes)?;
        let (decoder, letterboxer) = (&mut self.decoder, &mut self.letterboxer);
        let note = claim.note.as_ref();
        let made = guarded(note, || pixels(decoder, letterboxer, &bytes, &header, claim, spent));
        let (prepared, rgb) = match made {
            Ok(made) => made?,
            Err(panicked) => {
                // What is half-written must not leak into the next picture.
                (self.decoder, self.letterboxer) = (Decoder::new(), Letterboxer::new());
                return Err(panicked);
            }
        };
        drop(bytes);
        wanted(claim)?;
        // The letterboxed picture is the worker's own memory, so the decoded one can go before there
        // is a slot. One that is going to be drawn on stays, and so does its room: encoding it takes
        // about what decoding took.
        self.decoder.trim();
        match &prepared.picture {
            None => claim.ticket.shrink_to(0),
            Some(_) => claim.ticket.shrink_to(header.decode_bytes),
        }
        let mut slot = self.exchange.slot()?;
        if claim.is_cancelled() {
            // The device's threads have the other end, and may have left.
            let _ = self.exchange.give_back.send(slot);
            return Err(Failure::Cancelled);
        }
        let start = Instant::now();
        let copied = guarded(claim.note.as_ref(), || match slot.bytes_mut().get_mut(..rgb.len()) {
            Some(room) => {
                room.copy_from_slice(rgb);
                Ok(())
            }
            None => Err(Failure::Worker(format!(
                "an input of {} bytes does not fit into a device's slot. This is a bug.",
                rgb.len()
            ))),
        });
        spent.letterbox += start.elapsed();
        match copied.and_then(|copied| copied) {
            Ok(()) => Ok((slot, prepared)),
            Err(failure) => {
                let _ = self.exchange.give_back.send(slot);
                Err(failure)
            }
        }
    }
}

/// Decodes and letterboxes.
fn pixels<'a>(
    decoder: &mut Decoder,
    letterboxer: &'a mut Letterboxer,
    bytes: &[u8],
    header: &Header,
    claim: &Claim,
    spent: &mut Spent,
) -> Result<(Prepared, &'a [u8]), Failure> {
    let Params { limits, imgsz, square, annotate, .. } = &*claim.params;
    let start = Instant::now();
    let picture = decoder.run(bytes, header, limits).map_err(Failure::Picture)?;
    spent.decode += start.elapsed();

    let start = Instant::now();
    let geometry = Letterbox::new(picture.width, picture.height, *imgsz, *square);
    let rgb = letterboxer.run(picture, &geometry).map_err(Failure::Picture)?;
    let (size, truncated) = ((picture.width, picture.height), picture.truncated);
    spent.letterbox = start.elapsed();
    failpoint::hit("infer").map_err(Failure::Worker)?;
    let picture = annotate.as_ref().map(|_| decoder.take());
    Ok((Prepared { geometry, size, truncated, picture }, rgb))
}
