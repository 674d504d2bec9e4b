//! Reading a request's body within its limits.

use std::time::Duration;

use axum::body::{Body, HttpBody as _};
use http::{HeaderMap, StatusCode, header};
use http_body_util::BodyExt as _;
use tokio::sync::Semaphore;

use super::pace::slow;
use crate::serve::desk::{Desk, Room};
use crate::serve::problem::Problem;

/// What a client still sends after it was refused is read for so long, …
const DRAIN_TIME: Duration = Duration::from_secs(5);

/// … and so many bytes of it: a client that is still writing would else see a reset connection
/// where its refusal should be.
const DRAIN_BYTES: u64 = 256 << 20;

/// Only so many of more than `SMALL` bytes are read at a time: nobody gets work for free by being
/// refused.
static DRAINS: Semaphore = Semaphore::const_new(32);

/// A body that is small enough to be read whoever else is being read.
const SMALL: u64 = 1 << 20;

/// Reads a body of at most `most` bytes. The room that it takes is kept with it.
///
/// # Errors
/// [`Problem`] when it has more, or does not come.
pub(crate) async fn read(
    headers: &HeaderMap,
    body: Body,
    most: u64,
    desk: &Desk,
) -> Result<(Vec<u8>, Option<Room>), Problem> {
    let announced = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok());
    let announced: Option<u64> = announced.and_then(|text| text.parse().ok());
    if announced.is_some_and(|bytes| bytes > most) {
        refuse(headers, body).await;
        return Err(Problem::too_large(most));
    }
    // A few large bodies that come slowly must not keep small ones waiting; there are no more of
    // these than requests.
    let large = announced.is_none_or(|bytes| bytes > SMALL);
    let room = if large { Some(desk.room(announced.unwrap_or(most)).await) } else { None };
    let mut bytes = Vec::with_capacity(announced.map_or(0, |bytes| bytes as usize));
    let mut body = body;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| {
            if let Some(slow) = slow(&error) {
                let text = slow.to_string();
                return Problem::new(StatusCode::REQUEST_TIMEOUT, "slow_client", text);
            }
            let text = format!("the body did not come whole: {error}");
            Problem::new(StatusCode::BAD_REQUEST, "incomplete_body", text)
        })?;
        let Ok(data) = frame.into_data() else { continue };
        if (bytes.len() + data.len()) as u64 > most {
            drop(bytes);
            drain(body).await;
            return Err(Problem::too_large(most));
        }
        bytes.extend_from_slice(&data);
    }
    Ok((bytes, room))
}

/// Deals with the body of a request that is refused before any of it was read. A client that waits
/// to be told to go on has not sent it, and need not.
pub(crate) async fn refuse(headers: &HeaderMap, body: Body) {
    if !headers.contains_key(header::EXPECT) {
        drain(body).await;
    }
}

/// Reads what still comes, for a while, and forgets it.
pub(in crate::serve) async fn drain(mut body: Body) {
    // What is small is sent in a moment, and costs less than the connection does.
    let small = body.size_hint().upper().is_some_and(|bytes| bytes <= SMALL);
    let _turn = match small {
        true => None,
        false => match DRAINS.try_acquire() {
            Ok(turn) => Some(turn),
            Err(_) => return,
        },
    };
    let mut read = 0;
    let reading = async {
        while let Some(Ok(frame)) = body.frame().await {
            read += frame.data_ref().map_or(0, |data| data.len() as u64);
            if read > DRAIN_BYTES {
                return;
            }
        }
    };
    let _ = tokio::time::timeout(DRAIN_TIME, reading).await;
}
