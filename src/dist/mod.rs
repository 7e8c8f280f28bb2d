//! Several processes that train together: who they are, what they send each other, and that one which ends ends all.
//!
//! Every rank runs the same program over the same rows, and takes its share of each step's. What is decided by a clock or a disk is
//! decided by rank 0 ([`Ranks::decided`]). Whatever they exchange, all ranks make the same calls in the same order.

mod engine;
pub mod env;
mod mesh;
#[cfg(feature = "mpi")]
mod mpi;
mod nccl;
mod share;
mod watch;
pub mod wire;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use candle_core::Device;
use serde::Serialize;
use serde::de::DeserializeOwned;

pub use engine::{Engine, HostEngine};
pub use env::Place;
pub use mesh::host_name;
pub use nccl::Nccl;
pub use share::{Share, owners, part};
pub use watch::Loss;

use self::watch::Watch;
use self::wire::{Call, Tcp, Wire, exchange};
use crate::error::{Error, Result};
use crate::stop;

/// This process among those that train together, or alone.
#[derive(Clone, Default)]
pub struct Ranks(Option<Arc<Joined>>);

struct Joined {
    place: Place,
    wire: Arc<dyn Wire>,
    engine: Box<dyn Engine>,
    /// What takes its place between GPUs.
    nccl: OnceLock<Nccl>,
    watch: Watch,
    /// All have heard that one of them stops.
    stopped: AtomicBool,
}

impl Ranks {
    /// One process.
    pub fn alone() -> Self {
        Self(None)
    }

    /// Meets the others over TCP; numbers then go over MPI, where the build and the launcher have it. `on_loss` ends this process; it is called on another thread than the run's.
    ///
    /// # Errors
    /// The ranks cannot meet.
    pub fn join(place: Place, on_loss: fn(&Loss) -> !) -> Result<Self> {
        let mesh::Joined { data, control, hosts } = mesh::join(&place)?;
        let tcp = || -> Arc<dyn Wire> { Arc::new(Tcp::new(place.rank, data)) };
        #[cfg(feature = "mpi")]
        let wire = mpi::Mpi::start(&place)?.map_or_else(tcp, |mpi| Arc::new(mpi));
        #[cfg(not(feature = "mpi"))]
        let wire = tcp();
        let engine = Box::new(HostEngine::new(place.rank, place.size, Arc::clone(&wire)));
        let watch = Watch::start(place.rank, hosts, control, on_loss);
        let watch = watch
            .map_err(|error| Error::Compute(format!("the ranks cannot watch each other: {error}").into()))?;
        let (nccl, stopped) = (OnceLock::new(), AtomicBool::new(false));
        Ok(Self(Some(Arc::new(Joined { place, wire, engine, nccl, watch, stopped }))))
    }

    pub fn rank(&self) -> usize {
        self.0.as_ref().map_or(0, |joined| joined.place.rank)
    }

    pub fn size(&self) -> usize {
        self.0.as_ref().map_or(1, |joined| joined.place.size)
    }

    /// The process that writes and tells.
    pub fn is_first(&self) -> bool {
        self.rank() == 0
    }

    pub fn is_alone(&self) -> bool {
        self.0.is_none()
    }

    /// Its part of the optimiser's state.
    pub fn share(&self) -> Share {
        Share { rank: self.rank(), size: self.size() }
    }

    pub fn place(&self) -> Option<&Place> {
        self.0.as_ref().map(|joined| &joined.place)
    }

    /// `None`: alone.
    pub fn engine(&self) -> Option<&dyn Engine> {
        let joined = self.0.as_ref()?;
        Some(joined.nccl.get().map_or(&*joined.engine, |nccl| nccl as &dyn Engine))
    }

    /// Where all ranks have a GPU and NCCL, tensors go by it from now on. What there is to say of how they go; nothing to one process.
    ///
    /// # Errors
    /// Some ranks on GPUs and some on the CPU; two on one GPU; NCCL does not start.
    pub fn use_device(&self, device: &Device) -> Result<Option<String>> {
        let Some(joined) = &self.0 else { return Ok(None) };
        let (made, said) = nccl::engine(self, &joined.place, &joined.wire, device)?;
        made.into_iter().for_each(|made| drop(joined.nccl.set(made)));
        Ok(Some(said))
    }

    /// `2 on gpu-7`.
    pub fn name(&self, rank: usize) -> String {
        self.0
            .as_ref()
            .map_or_else(|| rank.to_string(), |joined| format!("{rank} on {}", joined.watch.host(rank)))
    }

    /// What this rank is at, for the last words of the others.
    pub fn at(&self, what: &str) {
        if let Some(joined) = &self.0 {
            joined.watch.at(what);
        }
    }

    /// Which rank does which piece of work.
    pub fn owners(&self, costs: &[usize]) -> Vec<usize> {
        owners(costs, self.size())
    }

    /// What every rank gives, by rank; the own value goes the way of the others, so that all ranks have the same.
    ///
    /// # Errors
    /// [`Error::Stopped`] on all ranks where one was asked to stop, or could not go on; [`Error::RankLost`].
    pub fn gather<T: Serialize + DeserializeOwned>(&self, mine: T) -> Result<Vec<T>> {
        let Some(joined) = &self.0 else { return Ok(vec![mine]) };
        joined.agree_to_go_on(&mine)
    }

    /// Rank 0's value of what ranks could see differently.
    ///
    /// # Errors
    /// As [`Self::gather`].
    pub fn decided<T: Serialize + DeserializeOwned>(&self, mine: T) -> Result<T> {
        self.given(self.is_first().then_some(mine))
    }

    /// What rank 0 gives, who alone has it.
    ///
    /// # Errors
    /// As [`Self::gather`].
    pub fn given<T: Serialize + DeserializeOwned>(&self, mine: Option<T>) -> Result<T> {
        // As a list: an option of an option is written as one.
        let given = self.gather(mine.into_iter().collect::<Vec<T>>())?.into_iter().next();
        let given = given.and_then(|list| list.into_iter().next());
        given.ok_or_else(|| Error::Compute("rank 0 gave no value".into()))
    }

    /// Tells the others, who are on their way to [`Self::gather`], that this rank stops. Nothing where they know.
    ///
    /// # Errors
    /// [`Error::RankLost`].
    pub fn stops(&self) -> Result<()> {
        let Some(joined) = self.0.as_ref().filter(|joined| !joined.stopped.load(Ordering::SeqCst)) else {
            return Ok(());
        };
        match joined.exchange(Call::Stops, Vec::new()) {
            Err(Error::Stopped) | Ok(_) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Tells the others that this rank ends for `why`; they end with `code`.
    pub fn end_all(&self, why: &str, code: u8) {
        if let Some(joined) = &self.0 {
            joined.watch.end_all(why, code);
        }
    }
}

impl Joined {
    fn agree_to_go_on<T: Serialize + DeserializeOwned>(&self, mine: &T) -> Result<Vec<T>> {
        let broken =
            |error: String| Error::Compute(format!("ranks exchange what they cannot read: {error}").into());
        let known = self.stopped.load(Ordering::SeqCst);
        let stops = !known && matches!(stop::look(), Err(Error::Stopped));
        let mut bytes = Vec::new();
        if !stops {
            ciborium::into_writer(mine, &mut bytes).map_err(|error| broken(error.to_string()))?;
        }
        let all = self.exchange(if stops { Call::Stops } else { Call::Values }, bytes)?;
        let read = |bytes: Vec<u8>| {
            ciborium::from_reader(bytes.as_slice()).map_err(|error| broken(error.to_string()))
        };
        all.into_iter().map(read).collect()
    }

    fn exchange(&self, call: Call, mut bytes: Vec<u8>) -> Result<Vec<Vec<u8>>> {
        bytes.push(call as u8);
        exchange(&*self.wire, call, &vec![bytes.as_slice(); self.place.size]).inspect_err(|error| {
            if let Error::Stopped = error {
                self.stopped.store(true, Ordering::SeqCst);
                // Whoever was not asked by a signal is asked now.
                stop::ask();
            }
        })
    }
}
