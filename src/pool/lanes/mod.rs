//! Engines with devices of their own: who prepares, who computes, and why nobody waits for ever.
//!
//! A worker decodes and letterboxes a picture, copies it into a slot, puts both into the bucket of
//! their shape, and goes on with the next one. One thread for each device takes batches from the
//! buckets, submits some ahead and finishes them in order. What comes back goes to whichever worker
//! is free first: suppression, drawing and the reply are the workers', who prefer what is nearly
//! through to what is new.
//!
//! ```text
//! queue ──► worker ──(slot)──► bucket of its shape ──► device ──► computed ──► worker ──► reply
//!             ▲                                          │
//!             └────────────── slots to be filled ◄───────┘
//! ```
//!
//! **Timing decides no byte.** Which pictures meet in a batch is chance. But a batch always has the
//! size that is part of the engine's numeric class, what is missing is padded, and what is computed
//! for a picture does not depend on its neighbours: that is what [`crate::engine::Batching`] promises.
//!
//! **Everybody's waiting ends.** There are these places to wait at:
//!
//! 1. *A device with nothing begun waits for pictures.* As soon as there is one, it waits no longer
//!    than [`station`]'s linger, whatever anybody else does. So a picture in a bucket waits for a
//!    device that is idle (that long at most) or for batches that are being computed, and of younger
//!    batches only a fixed number goes before it ([`buckets`]).
//! 2. *A device waits for its lane.* That is the device's own time. One that fails gives an error,
//!    by which its pictures are answered and its slots are lost; the batches that are being filled
//!    have slots of their own, so some are left for the other devices. When none is left, that is
//!    known: pictures in buckets are answered at once, and so are all later ones.
//! 3. *A worker waits for a slot.* A slot is free; or in the hands of a worker that fills it, which
//!    waits for nothing meanwhile; or in a bucket (1); or with a device (2), which gives it back
//!    before the picture is answered; or lost, and if with the last device, then the waiting ends by
//!    that. It does not matter how few there are, or of how many shapes.
//! 4. *A worker waits for memory.* The oldest ticket never waits for younger ones ([`super::budget`]).
//!    It waits neither for its own worker to come: it is that worker's at this moment (it has all it
//!    needs then), or in the queue or read ahead (as without devices), or in a bucket (1), or with a
//!    device (2), or computed.
//! 5. *A computed picture waits for a worker.* Every worker that waits for anything at all (a
//!    picture, memory, a slot) wakes up for it, answers it, and waits on. So one worker is enough,
//!    with any budget and any number of slots. Other than these waits workers only compute; a reply
//!    may wait for whoever takes answers, who must not wait for the pool, as without devices.
//!
//! **The end.** When all handles to the queue are dropped, each worker says that it brings no more
//! pictures, and answers what comes back until that channel is disconnected. Devices flush the buckets
//! once all workers have said so, finish what they have begun, and leave; the last of them
//! disconnects the channel.

mod buckets;
mod device;
mod exchange;
mod guard;
mod pending;
mod preparer;
mod station;
mod usage;

use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender};

use self::device::Device;
use self::exchange::Exchange;
use self::station::Station;
use super::threads::refused;
use super::work::{Idle, StartError, Work};
use crate::engine::{Batching, Engine};
use crate::yolo::Nms;

pub(super) use self::preparer::Preparer;
pub use self::usage::{Devices, DevicesSoFar};

/// Bytes of a slot for inputs of at most `side` by `side` pixels.
pub(super) fn slot_size(side: usize) -> usize {
    3 * side * side
}

/// Starts the devices' threads, and gives what their workers are to be: so many of them.
///
/// # Errors
/// When a lane, a slot or a thread cannot be had.
pub(super) fn start(
    engine: &Arc<dyn Engine>,
    batching: Batching,
    workers: usize,
    side: usize,
    queue: &Receiver<Work>,
    idle: &Arc<Idle>,
    alive: &Sender<()>,
) -> Result<(Arc<Devices>, Vec<Preparer>), StartError> {
    let (give_back, slots) = crossbeam_channel::unbounded();
    for _ in 0..batching.slots() {
        let slot = engine.slot(slot_size(side)).map_err(|error| refused(&error))?;
        // The receiver is right here.
        let _ = give_back.send(slot);
    }
    let lanes: Result<Vec<_>, _> =
        (0..batching.devices).map(|number| engine.lane(number)).collect();
    let lanes = lanes.map_err(|error| refused(&error))?;
    let (sender, computed) = crossbeam_channel::unbounded();
    let (station, no_device) =
        Station::new(batching.pictures, workers, batching.devices, queue.clone(), sender.clone());
    let preparer = |_| {
        Preparer::new(Exchange {
            station: station.clone(),
            slots: slots.clone(),
            give_back: give_back.clone(),
            computed: computed.clone(),
            no_device: no_device.clone(),
            idle: idle.clone(),
            nms: Nms::new(),
        })
    };
    let preparers = (0..workers).map(preparer).collect();
    let usage = Arc::new(Devices::new(batching.devices, batching.pictures));
    for (number, lane) in lanes.into_iter().enumerate() {
        let device = Device {
            number,
            depth: batching.depth.max(1),
            station: station.clone(),
            slots: give_back.clone(),
            computed: sender.clone(),
            usage: usage.clone(),
        };
        let alive = alive.clone();
        std::thread::Builder::new()
            .name(format!("device-{number}"))
            .spawn(move || {
                let _alive = alive;
                device.run(lane);
            })
            .map_err(|error| {
                StartError::Fault(format!("cannot start the thread of device {number}: {error}"))
            })?;
    }
    Ok((usage, preparers))
}
