//! What carries bytes between ranks, and the connections of `mesh` as one.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::{Mutex, PoisonError};

use crate::error::{Error, Result};

/// Every rank makes the same calls in the same order.
pub trait Wire: Send + Sync {
    fn name(&self) -> &'static str;
    /// Sends `out[r]` to rank r, and gives what each rank sent to this one, by rank, with the own piece among them.
    ///
    /// # Errors
    /// [`Error::RankLost`].
    fn all_to_all(&self, out: &[&[u8]]) -> Result<Vec<Vec<u8>>>;
}

/// What an exchange is of: the last byte of everything that is sent, so that ranks which are not at the same call find out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Call {
    Values,
    /// In the place of values: the rank that sends it stops.
    Stops,
    Sum,
    Parts,
    Whole,
}

/// [`Wire::all_to_all`] of one call; what is sent ends with it.
///
/// # Errors
/// As there; another rank is at another call. [`Error::Stopped`] where one stops and this one gives or stops.
pub fn exchange(wire: &dyn Wire, call: Call, out: &[&[u8]]) -> Result<Vec<Vec<u8>>> {
    let mut all = wire.all_to_all(out)?;
    let calls: Vec<u8> = all.iter_mut().filter_map(Vec::pop).collect();
    let agrees = |byte: u8| byte == call as u8;
    let stops = |byte: u8| byte == Call::Stops as u8;
    match calls.len() == all.len() {
        true if calls.iter().all(|byte| agrees(*byte)) && call != Call::Stops => Ok(all),
        true if [Call::Values, Call::Stops].contains(&call)
            && calls.iter().all(|byte| stops(*byte) || *byte == Call::Values as u8) =>
        {
            Err(Error::Stopped)
        }
        _ => Err(differs()),
    }
}

/// Ranks that are not at the same place.
pub fn differs() -> Error {
    Error::Compute("ranks disagree on what they exchange: their configs or versions differ".into())
}

/// A TCP connection to each other rank.
pub struct Tcp {
    rank: usize,
    /// By rank.
    streams: Mutex<Vec<Option<TcpStream>>>,
}

impl Tcp {
    pub fn new(rank: usize, streams: Vec<Option<TcpStream>>) -> Self {
        Self { rank, streams: Mutex::new(streams) }
    }
}

fn lost(rank: usize, error: &std::io::Error) -> Error {
    Error::RankLost { problem: format!("rank {rank} is gone: {error}") }
}

impl Wire for Tcp {
    fn name(&self) -> &'static str {
        "TCP"
    }

    /// In round k to the k-th rank after this one, and from the k-th before it, so that no two wait for each other.
    fn all_to_all(&self, out: &[&[u8]]) -> Result<Vec<Vec<u8>>> {
        let streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        let size = streams.len();
        let at = |rank: usize| streams.get(rank).and_then(Option::as_ref);
        let mut all = vec![Vec::new(); size];
        if let (Some(place), Some(own)) = (all.get_mut(self.rank), out.get(self.rank)) {
            *place = own.to_vec();
        }
        std::thread::scope(|scope| {
            let sender = scope.spawn(|| {
                for peer in (1..size).map(|round| (self.rank + round) % size) {
                    let (Some(mut stream), Some(bytes)) = (at(peer), out.get(peer)) else { continue };
                    let length = (bytes.len() as u64).to_le_bytes();
                    let sent = stream.write_all(&length).and_then(|()| stream.write_all(bytes));
                    sent.map_err(|error| lost(peer, &error))?;
                }
                Ok(())
            });
            let received = (1..size).map(|round| (self.rank + size - round) % size).try_for_each(|peer| {
                let Some(mut stream) = at(peer) else { return Ok(()) };
                let mut length = [0; 8];
                stream.read_exact(&mut length).map_err(|error| lost(peer, &error))?;
                let length = u64::from_le_bytes(length);
                let bytes = &mut all[peer];
                let read =
                    (&mut stream).take(length).read_to_end(bytes).map_err(|error| lost(peer, &error))?;
                match read as u64 == length {
                    true => Ok(()),
                    false => Err(lost(peer, &std::io::ErrorKind::UnexpectedEof.into())),
                }
            });
            let sent =
                sender.join().unwrap_or_else(|_| Err(Error::Compute("the sending thread broke".into())));
            received.and(sent)
        })?;
        Ok(all)
    }
}
