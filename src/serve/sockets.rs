//! The socket to listen on: one that was handed over (systemd's socket activation), or a new one.

use std::io;
use std::net::{SocketAddr, TcpListener};

use listenfd::ListenFd;
use nix::sys::socket::{Backlog, listen};

use crate::job::JobError;

/// Connections that wait to be taken; the system has a limit of its own, often the same.
const BACKLOG: i32 = 4096;

/// The socket that was handed over, or one that is bound to an address. Whoever hands one over
/// listens from before the process begins, so that its clients wait and none is refused.
///
/// # Errors
/// When what was handed over is not one TCP socket, or the address cannot be had.
pub(super) fn listener(address: SocketAddr) -> Result<TcpListener, JobError> {
    let mut handed = ListenFd::from_env();
    let listener = match handed.len() {
        0 => bound(address)
            .map_err(|error| JobError::Usage(format!("cannot listen on {address}: {error}")))?,
        1 => {
            let taken = handed.take_tcp_listener(0).map_err(|error| {
                JobError::Usage(format!(
                    "the socket that was handed over (LISTEN_FDS) is no TCP socket: {error}"
                ))
            })?;
            taken.ok_or_else(|| {
                JobError::Usage("there is no socket where LISTEN_FDS says one is".to_owned())
            })?
        }
        several => {
            let what = format!("{several} sockets were handed over (LISTEN_FDS); haul takes one");
            return Err(JobError::Usage(what));
        }
    };
    listener
        .set_nonblocking(true)
        .map_err(|error| JobError::Internal(format!("cannot set up the socket: {error}")))?;
    Ok(listener)
}

/// A new socket.
fn bound(address: SocketAddr) -> io::Result<TcpListener> {
    let listener = TcpListener::bind(address)?;
    // With the 128 of the standard library a crowd that comes at once loses some connections before
    // they are begun: each would be told what it is to do, if it were only taken.
    listen(&listener, Backlog::new(BACKLOG)?)?;
    Ok(listener)
}
