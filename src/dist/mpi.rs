//! A wire over MPI, for ranks that mpirun, or srun with PMIx, has started (feature `mpi`).
//!
//! MPI carries bytes and adds nothing up: its own sums may take the ranks in another order on another machine or for another size, and
//! every sum of ours is in the order of the ranks ([`super::HostEngine`]).

use std::sync::{Mutex, PoisonError};

use mpi::Threading;
use mpi::environment::Universe;
use mpi::point_to_point::send_receive_into;
use mpi::traits::{Communicator, Destination, Source};

use super::env::Place;
use super::wire::Wire;
use crate::error::{Error, Result};

/// Bytes of one message: MPI counts them in 31 bits.
const PIECE: usize = 1 << 30;
/// `tcp` keeps the connections of the ranks for everything.
const CHOICE: &str = "RLVR_WIRE";

pub struct Mpi {
    rank: usize,
    size: usize,
    /// One call at a time; the last of all is the end of MPI.
    universe: Mutex<Universe>,
}

impl Mpi {
    /// `None` where the launcher speaks no MPI to its processes, or the environment says `RLVR_WIRE=tcp`.
    ///
    /// # Errors
    /// MPI knows other ranks than the launcher's variables; its library allows no threads beside the one that calls.
    pub fn start(place: &Place) -> Result<Option<Self>> {
        let set = |name: &str| std::env::var(name).ok();
        match set(CHOICE).as_deref() {
            None | Some("" | "mpi") => {}
            Some("tcp") => return Ok(None),
            Some(other) => {
                return Err(Error::config(CHOICE, other, "mpi or tcp", "it is what carries bytes"));
            }
        }
        let speaks = place.launcher == "mpirun" || (place.launcher == "srun" && set("PMIX_RANK").is_some());
        if !speaks {
            return Ok(None);
        }
        let fix = format!("Set {CHOICE}=tcp for all ranks");
        let Some((universe, threads)) = mpi::initialize_with_threading(Threading::Serialized) else {
            return Err(Error::Compute("MPI was started twice".into()));
        };
        if threads < Threading::Serialized {
            return Err(Error::input("MPI", "is built without threads", fix));
        }
        let world = universe.world();
        let (rank, size) = (world.rank() as usize, world.size() as usize);
        if (rank, size) != (place.rank, place.size) {
            let (launcher, ours) = (place.launcher, (place.rank, place.size));
            let problem = format!(
                "has rank {rank} of {size} where {launcher} says {} of {}: rlvr is built with another MPI",
                ours.0, ours.1
            );
            return Err(Error::input("MPI", problem, fix));
        }
        Ok(Some(Self { rank, size, universe: Mutex::new(universe) }))
    }
}

impl Wire for Mpi {
    fn name(&self) -> &'static str {
        "MPI"
    }

    /// In round k to the k-th rank after this one, and from the k-th before it: lengths, then pieces.
    fn all_to_all(&self, out: &[&[u8]]) -> Result<Vec<Vec<u8>>> {
        let universe = self.universe.lock().unwrap_or_else(PoisonError::into_inner);
        let world = universe.world();
        let at = |rank: usize| world.process_at_rank(rank as i32);
        let mut all = vec![Vec::new(); self.size];
        for round in 0..self.size {
            let (to, from) = ((self.rank + round) % self.size, (self.rank + self.size - round) % self.size);
            let given = out.get(to).copied().unwrap_or_default();
            if round == 0 {
                all[to] = given.to_vec();
                continue;
            }
            let mut length = 0u64;
            send_receive_into(&(given.len() as u64), &at(to), &mut length, &at(from));
            let mut got = vec![0u8; length as usize];
            // Who sends many pieces may receive none: each pair has its own number of messages.
            mpi::request::scope(|scope| {
                let pieces = given.chunks(PIECE).map(|piece| at(to).immediate_send(scope, piece));
                let sent: Vec<_> = pieces.collect();
                got.chunks_mut(PIECE).for_each(|piece| {
                    at(from).receive_into(piece);
                });
                sent.into_iter().for_each(|request| {
                    request.wait();
                });
            });
            all[from] = got;
        }
        Ok(all)
    }
}
