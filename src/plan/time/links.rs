//! What joins cards, and how long a ring over it takes.

use crate::error::{Error, Result};
use crate::plan::time::Gpu;

/// A link, as `--link` calls it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Link {
    pub name: &'static str,
    /// Bytes/s in one direction, at the most; of NVLink what the card has.
    bandwidth: Option<f64>,
    /// Seconds of a ring's step.
    step: f64,
    pub between_nodes: bool,
}

/// PCI-SIG's base specification 4.0: 16 lanes of 16 GT/s, 128 bits of 130. IBTA's NDR: 400 Gbit/s of four lanes. IEEE 802.3by: 25 Gbit/s.
/// Steps are those of NCCL's own cost model for a ring of its simple protocol (src/graph/tuning.cc, `hwLat`), which has one for any
/// network: TCP takes longer.
pub const LINKS: [Link; 4] = [
    Link { name: "nvlink", bandwidth: None, step: 3.4e-6, between_nodes: false },
    Link { name: "pcie4", bandwidth: Some(31.5e9), step: 5.7e-6, between_nodes: false },
    Link { name: "ib400", bandwidth: Some(50e9), step: 9.6e-6, between_nodes: true },
    Link { name: "eth25", bandwidth: Some(3.125e9), step: 9.6e-6, between_nodes: true },
];

/// Seconds before a ring's first step: `baseLat` of the same file.
const BASE: f64 = 8.4e-6;
/// Of a link's bandwidth, reached by large messages. Never measured here.
pub const SHARE: f64 = 0.8;

/// The cards of some nodes and what joins them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Network {
    /// Cards of a node.
    pub gpus: usize,
    pub nodes: usize,
    inside: Option<(Link, f64)>,
    /// With the bytes/s of all adapters of a node.
    between: Option<(Link, f64)>,
}

impl Link {
    /// # Errors
    /// None has this name.
    pub fn find(name: &str) -> Result<Self> {
        LINKS.into_iter().find(|link| link.name == name).ok_or_else(|| {
            let known = LINKS.map(|link| link.name).join(", ");
            let why = "a link's rate has to be known";
            Error::config("--link", name, format!("one of {known}"), why)
        })
    }

    fn on(self, gpu: Option<Gpu>) -> Result<(Self, f64)> {
        let of_card = || gpu.and_then(|gpu| gpu.nvlink);
        match self.bandwidth.or_else(of_card) {
            Some(bandwidth) => Ok((self, bandwidth)),
            None => {
                let problem = match gpu {
                    Some(gpu) => format!("{} has no NVLink", gpu.name),
                    None => "NVLink's rate hangs on the card".into(),
                };
                Err(Error::input("--link", problem, "Give --link pcie4, or a card with NVLink in --gpu"))
            }
        }
    }
}

impl Network {
    /// `links`: at most one inside a node and one between nodes. What is not named inside is NVLink where the card has it, else
    /// PCIe. `adapters`: network adapters of a node, each of which carries a ring of its own.
    ///
    /// # Errors
    /// A link that joins nothing here, two of one kind, none between nodes.
    pub fn new([gpus, nodes]: [usize; 2], links: &[Link], adapters: usize, gpu: Option<Gpu>) -> Result<Self> {
        let named = |between: bool| -> Result<Option<Link>> {
            let mut found = links.iter().filter(|link| link.between_nodes == between);
            let first = found.next().copied();
            if let (Some(one), Some(other)) = (first, found.next()) {
                let problem = format!("{} and {} join the same cards", one.name, other.name);
                return Err(Error::input("--link", problem, "Name one"));
            }
            Ok(first)
        };
        let (inside, between) = (named(false)?, named(true)?);
        let nothing = |link: Link, what: &str, fix: &str| {
            Err(Error::input("--link", format!("{} joins {what}, and there is one", link.name), fix))
        };
        if let (Some(link), 1) = (inside, gpus) {
            return nothing(link, "the cards of a node", "Leave it away, or give --gpus");
        }
        if let (Some(link), 1) = (between, nodes) {
            return nothing(link, "nodes", "Leave it away, or give --nodes");
        }
        if nodes > 1 && between.is_none() {
            let known = LINKS.iter().filter(|link| link.between_nodes).map(|link| link.name);
            let known = known.collect::<Vec<_>>().join(" or ");
            return Err(Error::input("--link", "names no network between the nodes", format!("Add {known}")));
        }
        let usual =
            || Link::find(if gpu.is_some_and(|gpu| gpu.nvlink.is_some()) { "nvlink" } else { "pcie4" });
        let inside = match (inside, gpus) {
            (_, 1) => None,
            (Some(link), _) => Some(link.on(gpu)?),
            (None, _) => Some(usual()?.on(gpu)?),
        };
        let between = between.map(|link| link.on(gpu)).transpose()?;
        let between = between.map(|(link, each)| (link, each * adapters as f64));
        Ok(Self { gpus, nodes, inside, between })
    }

    pub fn size(&self) -> usize {
        self.gpus * self.nodes
    }

    /// The links with their GB/s in one direction.
    pub fn describe(&self) -> String {
        let one = |(link, bandwidth): (Link, f64)| format!("{} {} GB/s", link.name, bandwidth / 1e9);
        [self.inside, self.between].into_iter().flatten().map(one).collect::<Vec<_>>().join(", ")
    }

    /// Bytes/s of the ring over all cards: its slowest link's.
    fn bandwidth(&self) -> f64 {
        let all = [self.inside, self.between].into_iter().flatten().map(|(_, bandwidth)| bandwidth);
        all.fold(f64::INFINITY, f64::min) * SHARE
    }

    /// Bytes that a card sends of a reduce-scatter or all-gather of so many; an all-reduce is both.
    pub fn sent(&self, bytes: f64) -> f64 {
        bytes * (self.size() - 1) as f64 / self.size() as f64
    }

    /// Seconds of a ring's steps without bytes.
    fn latency(&self) -> f64 {
        let step = |link: Option<(Link, f64)>| link.map_or(0.0, |(link, _)| link.step);
        (self.size() - self.nodes) as f64 * step(self.inside) + (self.nodes - 1) as f64 * step(self.between)
    }

    /// Seconds of a reduce-scatter, or an all-gather, of so many bytes: those of all ranks.
    pub fn half(&self, bytes: f64) -> f64 {
        BASE + self.latency() + self.sent(bytes) / self.bandwidth()
    }

    pub fn all_reduce(&self, bytes: f64) -> f64 {
        BASE + 2.0 * (self.latency() + self.sent(bytes) / self.bandwidth())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(sizes: [usize; 2], links: &[&str], adapters: usize, gpu: &str) -> Result<Network> {
        let links = links.iter().map(|name| Link::find(name)).collect::<Result<Vec<_>>>()?;
        Network::new(sizes, &links, adapters, Some(Gpu::find("--gpu", gpu)?))
    }

    /// 1 GB by hand: 7/8 of it at .8 of 450 GB/s; 15/16 of it over one adapter of 50 GB/s, or over eight.
    #[test]
    fn a_ring_is_as_fast_as_its_slowest_link() {
        let node = network([8, 1], &[], 1, "h100").unwrap();
        assert!((node.half(1e9) - (8.4e-6 + 7.0 * 3.4e-6 + 0.875 / 360.0)).abs() < 1e-9);
        assert!((node.all_reduce(1e9) - (8.4e-6 + 14.0 * 3.4e-6 + 1.75 / 360.0)).abs() < 1e-9);
        let two = network([8, 2], &["ib400"], 1, "h100").unwrap();
        assert!((two.half(1e9) - (8.4e-6 + 14.0 * 3.4e-6 + 9.6e-6 + 0.9375 / 40.0)).abs() < 1e-9);
        let rails = network([8, 2], &["ib400"], 8, "h100").unwrap();
        assert!((rails.half(1e9) - two.half(1e9) + 0.9375 * (1.0 / 40.0 - 1.0 / 320.0)).abs() < 1e-9);
        let slow = network([8, 2], &["ib400", "pcie4"], 1, "h100").unwrap();
        assert_eq!(slow.bandwidth(), 0.8 * 31.5e9);
        assert_eq!(network([4, 1], &[], 1, "l40s").unwrap().describe(), "pcie4 31.5 GB/s");
        assert_eq!(network([1, 4], &["eth25"], 1, "h100").unwrap().describe(), "eth25 3.125 GB/s");
    }

    #[test]
    fn links_that_join_nothing_are_refused() {
        for (sizes, links, gpu, part) in [
            ([8, 2], &[][..], "h100", "names no network between the nodes"),
            ([8, 2], &["nvlink"], "h100", "Add ib400 or eth25"),
            ([8, 1], &["ib400"], "h100", "ib400 joins nodes, and there is one"),
            ([1, 2], &["pcie4", "ib400"], "h100", "pcie4 joins the cards of a node"),
            ([8, 2], &["eth25", "ib400"], "h100", "eth25 and ib400 join the same cards"),
            ([8, 1], &["nvlink"], "l40s", "l40s has no NVLink"),
            ([8, 1], &["token-ring"], "h100", "one of nvlink, pcie4, ib400, eth25"),
        ] {
            let error = network(sizes, links, 1, gpu).unwrap_err();
            assert!(error.is_input() && error.to_string().contains(part), "{links:?}: {error}");
        }
    }
}
