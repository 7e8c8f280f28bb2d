//! Tensors of GPUs among ranks, by NCCL; what is small, and what goes to a host's memory, takes the wire.

use std::sync::Arc;

use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};

use super::engine::{Engine, HostEngine};
use super::mesh::host_name;
use super::share::part;
use super::wire::Wire;
use super::{Place, Ranks};
use crate::error::{Error, Result};
use crate::ops::cuda::{self, Communicator};

/// One GPU a rank.
pub struct Nccl {
    communicator: Communicator,
    host: HostEngine,
    rank: usize,
    size: usize,
}

/// What a rank has to exchange tensors with.
#[derive(Clone, Serialize, Deserialize)]
struct Offer {
    host: String,
    /// Its GPU's place on the host's bus; none on the CPU.
    card: Option<String>,
    /// NCCL's version, or why it cannot be used.
    nccl: std::result::Result<String, String>,
}

/// How the ranks of an [`Offer`] each exchange tensors.
#[derive(Debug, PartialEq, Eq)]
enum Way {
    Host(String),
    Nccl(String),
}

/// NCCL where all ranks have a GPU of their own and the library, and what there is to say. Every rank calls this.
///
/// # Errors
/// Some ranks on GPUs and some on the CPU; two on one GPU; NCCL does not start.
pub fn engine(
    ranks: &Ranks,
    place: &Place,
    wire: &Arc<dyn Wire>,
    device: &Device,
) -> Result<(Option<Nccl>, String)> {
    let offer = Offer {
        host: host_name(),
        card: device.is_cuda().then(|| cuda::bus_id(device)).transpose()?,
        nccl: cuda::nccl_version(),
    };
    match way(&ranks.gather(offer)?, wire.name())? {
        Way::Host(said) => Ok((None, said)),
        Way::Nccl(said) => {
            let id: Vec<u8> = ranks.given(ranks.is_first().then(cuda::nccl_id).transpose()?)?;
            Ok((Some(Nccl::new(device, (place.rank, place.size), Arc::clone(wire), &id)?), said))
        }
    }
}

fn way(offers: &[Offer], wire: &str) -> Result<Way> {
    let size = offers.len();
    let on_cpu = offers.iter().position(|offer| offer.card.is_none());
    let on_card = offers.iter().position(|offer| offer.card.is_some());
    let Some(card) = on_card else { return Ok(Way::Host(format!("{size} ranks exchange over {wire}"))) };
    if let Some(cpu) = on_cpu {
        let problem = format!(
            "rank {cpu} on {} computes on the CPU, and rank {card} on {} on a GPU",
            offers[cpu].host, offers[card].host
        );
        let fix = "Give every rank a GPU, or choose the device cpu for all";
        return Err(Error::input("device", problem, fix));
    }
    for (rank, offer) in offers.iter().enumerate() {
        let same = |other: &Offer| other.host == offer.host && other.card == offer.card;
        if let Some(other) = offers[..rank].iter().position(same) {
            let card = offer.card.as_deref().unwrap_or_default();
            return Err(Error::input(
                "device cuda",
                format!("ranks {other} and {rank} on {} have the same GPU ({card})", offer.host),
                "Start no more ranks on a host than it has GPUs, and let CUDA_VISIBLE_DEVICES show each rank all of them or its own",
            ));
        }
    }
    let missing =
        offers.iter().enumerate().find_map(|(rank, offer)| Some((rank, offer.nccl.as_ref().err()?)));
    Ok(match missing {
        Some((rank, why)) => Way::Host(format!(
            "{size} ranks exchange over {wire} and through host memory, which is slower than NCCL: {why} on {} (rank {rank}). pip \
             install nvidia-nccl-cu13, and add its nvidia/nccl/lib to RLVR_CUDA_LIBRARY_PATH",
            offers[rank].host
        )),
        None => {
            let version = offers[0].nccl.clone().unwrap_or_default();
            Way::Nccl(format!("{size} ranks exchange by NCCL {version}"))
        }
    })
}

impl Nccl {
    /// `id`: of [`cuda::nccl_id`], the same for all ranks.
    ///
    /// # Errors
    /// NCCL does not start.
    pub fn new(
        device: &Device,
        (rank, size): (usize, usize),
        wire: Arc<dyn Wire>,
        id: &[u8],
    ) -> Result<Self> {
        let communicator = Communicator::new(device, rank, size, id)?;
        Ok(Self { communicator, host: HostEngine::new(rank, size, wire), rank, size })
    }

    /// Every rank's part of a tensor that is not empty, in the tensor's memory, and whose it is.
    fn parts(&self, tensor: &Tensor) -> Result<Vec<(Tensor, usize)>> {
        if !tensor.is_contiguous() {
            let what = format!("ranks exchange what is contiguous, not strides {:?}", tensor.stride());
            return Err(Error::Compute(what.into()));
        }
        let flat = tensor.flatten_all()?;
        let ranges = (0..self.size).map(|rank| (part(tensor.elem_count(), rank, self.size), rank));
        let some = ranges.filter(|(range, _)| !range.is_empty());
        some.map(|(range, rank)| Ok((flat.narrow(0, range.start, range.len())?, rank))).collect()
    }
}

impl Engine for Nccl {
    fn name(&self) -> &'static str {
        "NCCL"
    }

    /// Parts are unequal, so that they are a sum each, to the rank whose it is; in one group all links work at once.
    fn reduce_scatter(&self, tensors: &[Tensor]) -> Result<Vec<Tensor>> {
        let (mut calls, mut sums) = (Vec::new(), Vec::with_capacity(tensors.len()));
        for tensor in tensors {
            let count = part(tensor.elem_count(), self.rank, self.size).len();
            let sum = cuda::uninit(tensor.device(), count, tensor.dtype())?;
            for (piece, root) in self.parts(tensor)? {
                calls.push((piece, (root == self.rank).then(|| sum.clone()), root));
            }
            sums.push(sum);
        }
        self.communicator.reduce(&calls)?;
        Ok(sums)
    }

    fn all_gather(&self, tensors: &[Tensor]) -> Result<()> {
        let parts = tensors.iter().map(|tensor| self.parts(tensor)).collect::<Result<Vec<_>>>()?;
        self.communicator.broadcast(&parts.concat())
    }

    fn finish(&self) -> Result<()> {
        self.communicator.wait()
    }

    fn gather(&self, parts: &[Tensor]) -> Result<Option<Vec<Tensor>>> {
        self.host.gather(parts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(host: &str, card: Option<&str>) -> Offer {
        Offer { host: host.into(), card: card.map(Into::into), nccl: Ok("2.28.9".into()) }
    }

    #[test]
    fn ranks_agree_on_one_way() {
        let [a0, a1, b0] = [("a", "0:1:0"), ("a", "0:2:0"), ("b", "0:1:0")].map(|(h, c)| offer(h, Some(c)));
        assert_eq!(
            way(&[a0.clone(), a1.clone(), b0.clone()], "TCP").unwrap(),
            Way::Nccl("3 ranks exchange by NCCL 2.28.9".into())
        );
        let on_cpu = offer("b", None);
        assert_eq!(
            way(&[on_cpu.clone(), on_cpu.clone()], "TCP").unwrap(),
            Way::Host("2 ranks exchange over TCP".into())
        );
        let text = way(&[a0.clone(), on_cpu], "TCP").unwrap_err().to_string();
        assert!(text.contains("rank 1 on b computes on the CPU, and rank 0 on a on a GPU"), "{text}");
        let text = way(&[a0.clone(), b0.clone(), a0.clone()], "TCP").unwrap_err().to_string();
        assert!(
            text.contains("ranks 0 and 2 on a have the same GPU (0:1:0)")
                && text.contains("CUDA_VISIBLE_DEVICES"),
            "{text}"
        );
        let lacks = Offer { nccl: Err("libnccl.so.2 was not found".into()), ..b0 };
        let Way::Host(said) = way(&[a0, a1, lacks], "TCP").unwrap() else {
            panic!("NCCL without the library")
        };
        assert!(said.contains("libnccl.so.2 was not found on b (rank 2)") && said.contains("pip"), "{said}");
    }
}
