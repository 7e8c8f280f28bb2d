//! Which rank this process is, as launchers say it in its environment.
//!
//! What torchrun, mpirun (Open MPI 4.1), srun (Slurm 22.05), SkyPilot and dstack set was read off them; `docs/many-gpus.md` has the table.

use sha2::{Digest, Sha256};

use crate::error::{Error, Result};

/// A process among those that train together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub rank: usize,
    pub size: usize,
    /// Among the ranks of its host.
    pub local_rank: usize,
    pub local_size: usize,
    /// Where rank 0 listens.
    pub address: String,
    pub port: u16,
    /// What this job has and another on the same hosts has not.
    pub job: String,
    pub launcher: &'static str,
}

/// What the environment says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// One process; perhaps something to say about it.
    Alone(Option<String>),
    Rank(Place),
    /// Of so many nodes this one; whoever starts the ranks there has to say how many.
    Node {
        node: usize,
        nodes: usize,
        address: String,
        port: u16,
        job: String,
        launcher: &'static str,
    },
}

/// Ports are made of the job's name where a launcher gives none: 20000 to 31999.
fn port_of(job: &str) -> u16 {
    let hash = Sha256::digest(job.as_bytes());
    20_000 + u16::from_be_bytes([hash[0], hash[1]]) % 12_000
}

/// `variable` gives an environment variable's value.
///
/// # Errors
/// Variables that contradict each other, or are no numbers; ranks on several hosts without the address of the first.
pub fn find(variable: impl Fn(&str) -> Option<String>) -> Result<Found> {
    let env = Env { variable: &variable };
    if env.text("WORLD_SIZE").is_some() || env.text("RANK").is_some() {
        return env.torch();
    }
    if env.text("OMPI_COMM_WORLD_SIZE").is_some() {
        return env.open_mpi();
    }
    if env.text("SLURM_STEP_NUM_TASKS").is_some() {
        return env.slurm();
    }
    for (launcher, [node, nodes, first]) in [
        ("SkyPilot", ["SKYPILOT_NODE_RANK", "SKYPILOT_NUM_NODES", "SKYPILOT_NODE_IPS"]),
        ("dstack", ["DSTACK_NODE_RANK", "DSTACK_NODES_NUM", "DSTACK_MASTER_NODE_IP"]),
    ] {
        if env.text(nodes).is_some() {
            return env.nodes(launcher, node, nodes, first);
        }
    }
    let tasks = env.number("SLURM_NTASKS").ok().flatten().filter(|tasks| *tasks > 1);
    let alone = tasks.map(|tasks| {
        format!("the Slurm job has {tasks} tasks and this process was not started by srun: it trains alone. For {tasks} ranks write srun rlvr ...")
    });
    Ok(Found::Alone(alone))
}

struct Env<'a> {
    variable: &'a dyn Fn(&str) -> Option<String>,
}

impl Env<'_> {
    fn text(&self, name: &str) -> Option<String> {
        (self.variable)(name).map(|value| value.trim().to_string()).filter(|value| !value.is_empty())
    }

    fn number(&self, name: &str) -> Result<Option<usize>> {
        let Some(text) = self.text(name) else { return Ok(None) };
        text.parse().map(Some).map_err(|_| {
            let fix = "Let the launcher set it, or unset it to train in one process";
            Error::input(name, format!("is `{text}`, which is no number"), fix)
        })
    }

    fn needed(&self, name: &str, beside: &str) -> Result<usize> {
        self.number(name)?.ok_or_else(|| {
            let fix = "Let the launcher set both, or unset both to train in one process";
            Error::input(name, format!("is not set, and {beside} is"), fix)
        })
    }

    fn port(&self, otherwise: &str) -> Result<u16> {
        match self.number("MASTER_PORT")? {
            None => Ok(port_of(otherwise)),
            Some(port) => u16::try_from(port).ok().filter(|port| *port > 0).ok_or_else(|| {
                Error::input("MASTER_PORT", format!("is {port}: no port"), "Give one of 1024 to 65535")
            }),
        }
    }

    fn place(
        &self,
        launcher: &'static str,
        (rank, size): (usize, usize),
        (local_rank, local_size): (usize, usize),
        (address, job): (Option<String>, String),
    ) -> Result<Found> {
        if rank >= size {
            let fix = "Ranks count from 0. Check how the processes were started";
            return Err(Error::input(launcher, format!("rank {rank} of {size} cannot be"), fix));
        }
        if size == 1 {
            return Ok(Found::Alone(None));
        }
        let one_host = (local_size == size).then(|| "127.0.0.1".to_string());
        let address = self.text("MASTER_ADDR").or(one_host).or(address).ok_or_else(|| {
            let problem = "is not set, and the ranks are on several hosts";
            Error::input("MASTER_ADDR", problem, "Set it to the host of rank 0 (mpirun -x MASTER_ADDR=HOST)")
        })?;
        let port = self.port(&job)?;
        Ok(Found::Rank(Place { rank, size, local_rank, local_size, address, port, job, launcher }))
    }

    /// torchrun, Kubeflow, and whoever sets the same.
    fn torch(&self) -> Result<Found> {
        let rank = self.needed("RANK", "WORLD_SIZE")?;
        let size = self.needed("WORLD_SIZE", "RANK")?;
        let local_rank = self.number("LOCAL_RANK")?.unwrap_or(rank);
        let local_size = self.number("LOCAL_WORLD_SIZE")?.unwrap_or(if self.text("LOCAL_RANK").is_some() {
            1
        } else {
            size
        });
        let job = self.text("TORCHELASTIC_RUN_ID").unwrap_or_default();
        let restarts = self.text("TORCHELASTIC_RESTART_COUNT").unwrap_or_default();
        let job = format!("torch {job} {restarts}");
        let found = self.place("RANK and WORLD_SIZE", (rank, size), (local_rank, local_size), (None, job))?;
        // torchrun itself listens at MASTER_PORT.
        let taken =
            self.text("TORCHELASTIC_USE_AGENT_STORE").is_some_and(|value| value.eq_ignore_ascii_case("true"));
        Ok(match found {
            Found::Rank(place) if taken => {
                let port = if place.port == u16::MAX { 1024 } else { place.port + 1 };
                Found::Rank(Place { port, ..place })
            }
            found => found,
        })
    }

    fn open_mpi(&self) -> Result<Found> {
        let size = self.needed("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK")?;
        let rank = self.needed("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE")?;
        let local_rank = self.number("OMPI_COMM_WORLD_LOCAL_RANK")?.unwrap_or(rank);
        let local_size = self.number("OMPI_COMM_WORLD_LOCAL_SIZE")?.unwrap_or(1);
        let job = ["OMPI_MCA_orte_precondition_transports", "PMIX_NAMESPACE"]
            .iter()
            .find_map(|name| self.text(name));
        let job = format!("mpi {}", job.unwrap_or_default());
        self.place("mpirun", (rank, size), (local_rank, local_size), (None, job))
    }

    fn slurm(&self) -> Result<Found> {
        let size = self.needed("SLURM_STEP_NUM_TASKS", "SLURM_PROCID")?;
        let rank = self.needed("SLURM_PROCID", "SLURM_STEP_NUM_TASKS")?;
        let nodes = self.number("SLURM_STEP_NUM_NODES")?.unwrap_or(1);
        let local_rank = self.number("SLURM_LOCALID")?.unwrap_or(rank);
        let local_size = match nodes {
            1 => size,
            _ => self.text("SLURM_STEP_TASKS_PER_NODE").map_or(1, |tasks| leading_number(&tasks)),
        };
        let job = ["SLURM_JOB_ID", "SLURM_STEP_ID"].map(|name| self.text(name).unwrap_or_default());
        let first = self.text("SLURM_STEP_NODELIST").and_then(|list| first_host(&list));
        self.place(
            "srun",
            (rank, size),
            (local_rank, local_size),
            (first, format!("slurm {}", job.join("."))),
        )
    }

    fn nodes(&self, launcher: &'static str, node: &str, nodes: &str, first: &str) -> Result<Found> {
        let (count, index) = (self.needed(nodes, node)?, self.needed(node, nodes)?);
        let address = self.text(first).and_then(|list| list.split_whitespace().next().map(str::to_string));
        let job = ["SKYPILOT_TASK_ID", "DSTACK_RUN_ID"].iter().find_map(|name| self.text(name));
        let job = format!("{launcher} {}", job.unwrap_or_default());
        let address = match (address, count) {
            (Some(address), _) => address,
            (None, 1) => "127.0.0.1".into(),
            (None, _) => {
                return Err(Error::input(
                    first,
                    format!("is not set, and {nodes} is {count}"),
                    "Set it to the host of node 0",
                ));
            }
        };
        let port = self.port(&job)?;
        Ok(Found::Node { node: index, nodes: count, address, port, job, launcher })
    }
}

/// `2(x3),1` is two tasks on each of three nodes, then one: the first number. Nodes with different counts are told apart by no
/// variable; what it decides is threads and devices of a rank, which `SLURM_LOCALID` has.
fn leading_number(text: &str) -> usize {
    let digits: String = text.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().unwrap_or(1)
}

/// The first host of a Slurm list such as `n[01-03,07],b5`.
fn first_host(list: &str) -> Option<String> {
    let mut depth = 0usize;
    let first: String = list
        .chars()
        .take_while(|c| {
            depth = match c {
                '[' => depth + 1,
                ']' => depth.saturating_sub(1),
                _ => depth,
            };
            !(*c == ',' && depth == 0)
        })
        .collect();
    let mut name = String::new();
    let mut rest = first.as_str();
    while let Some((before, after)) = rest.split_once('[') {
        let (range, after) = after.split_once(']')?;
        name.push_str(before);
        name.extend(range.chars().take_while(char::is_ascii_digit));
        rest = after;
    }
    name.push_str(rest);
    (!name.is_empty()).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(variables: &str) -> Result<Found> {
        let all: Vec<(&str, &str)> =
            variables.split_whitespace().filter_map(|one| one.split_once('=')).collect();
        find(|name| all.iter().find(|(known, _)| *known == name).map(|(_, value)| value.to_string()))
    }

    fn place(variables: &str) -> Place {
        match found(variables).unwrap() {
            Found::Rank(place) => place,
            other => panic!("{variables}: {other:?}"),
        }
    }

    /// What launchers set on a machine where they were run.
    #[test]
    fn launchers_say_who_a_process_is() {
        let torch =
            "RANK=3 WORLD_SIZE=4 LOCAL_RANK=1 LOCAL_WORLD_SIZE=2 MASTER_ADDR=10.0.0.1 MASTER_PORT=29500";
        let of_torch = place(torch);
        assert_eq!((of_torch.rank, of_torch.size, of_torch.local_rank, of_torch.local_size), (3, 4, 1, 2));
        assert_eq!((of_torch.address.as_str(), of_torch.port), ("10.0.0.1", 29500));
        let agent = format!("{torch} TORCHELASTIC_USE_AGENT_STORE=True TORCHELASTIC_RUN_ID=none");
        assert_eq!(place(&agent).port, 29501, "torchrun listens at MASTER_PORT");

        let mpi = "OMPI_COMM_WORLD_RANK=1 OMPI_COMM_WORLD_SIZE=2 OMPI_COMM_WORLD_LOCAL_RANK=1 OMPI_COMM_WORLD_LOCAL_SIZE=2 \
                   OMPI_MCA_orte_precondition_transports=00ff-01";
        let of_mpi = place(mpi);
        assert_eq!((of_mpi.rank, of_mpi.address.as_str(), of_mpi.launcher), (1, "127.0.0.1", "mpirun"));
        assert_ne!(of_mpi.port, place(&mpi.replace("00ff", "00fe")).port, "each job has its own");

        let slurm = "SLURM_PROCID=2 SLURM_NTASKS=4 SLURM_STEP_NUM_TASKS=4 SLURM_STEP_NUM_NODES=2 SLURM_LOCALID=0 SLURM_STEP_ID=0 \
                     SLURM_STEP_NODELIST=n[1-2] SLURM_STEP_TASKS_PER_NODE=2(x2) SLURM_JOB_ID=7";
        let of_slurm = place(slurm);
        assert_eq!((of_slurm.rank, of_slurm.local_rank, of_slurm.local_size), (2, 0, 2));
        assert_eq!(of_slurm.address, "n1");
    }

    #[test]
    fn the_inner_launcher_counts() {
        let both =
            "RANK=1 WORLD_SIZE=2 LOCAL_RANK=1 LOCAL_WORLD_SIZE=2 SLURM_PROCID=0 SLURM_STEP_NUM_TASKS=1";
        assert_eq!(place(both).rank, 1);
        let mpi = "OMPI_COMM_WORLD_RANK=1 OMPI_COMM_WORLD_SIZE=2 OMPI_COMM_WORLD_LOCAL_SIZE=2 SLURM_PROCID=0 SLURM_STEP_NUM_TASKS=1";
        assert_eq!(place(mpi).launcher, "mpirun");
    }

    #[test]
    fn one_process_is_alone() {
        assert_eq!(found("").unwrap(), Found::Alone(None));
        assert_eq!(found("RANK=0 WORLD_SIZE=1").unwrap(), Found::Alone(None));
        assert_eq!(found("SLURM_PROCID=0 SLURM_STEP_NUM_TASKS=1").unwrap(), Found::Alone(None));
        let Found::Alone(Some(text)) = found("SLURM_PROCID=0 SLURM_NTASKS=4").unwrap() else {
            panic!("nothing is said")
        };
        assert!(text.contains("4 tasks") && text.contains("srun"), "{text}");
    }

    #[test]
    fn nodes_are_no_ranks() {
        let sky = "SKYPILOT_NODE_RANK=1 SKYPILOT_NUM_NODES=2 SKYPILOT_TASK_ID=sky-7";
        let text = find(|name| match name {
            "SKYPILOT_NODE_IPS" => Some("10.1.0.4\n10.1.0.5".into()),
            other => sky
                .split(' ')
                .filter_map(|one| one.split_once('='))
                .find(|(known, _)| *known == other)
                .map(|(_, v)| v.into()),
        });
        let Found::Node { node, nodes, address, .. } = text.unwrap() else { panic!("no node") };
        assert_eq!((node, nodes, address.as_str()), (1, 2, "10.1.0.4"));
    }

    #[test]
    fn what_contradicts_itself_is_refused() {
        for (variables, named) in [
            ("WORLD_SIZE=2", "RANK"),
            ("RANK=1", "WORLD_SIZE"),
            ("RANK=2 WORLD_SIZE=2 LOCAL_RANK=0", "rank 2 of 2"),
            ("RANK=x WORLD_SIZE=2", "`x`"),
            ("RANK=0 WORLD_SIZE=2 MASTER_ADDR=h MASTER_PORT=99999", "99999"),
            ("RANK=0 WORLD_SIZE=4 LOCAL_RANK=0 LOCAL_WORLD_SIZE=2", "MASTER_ADDR"),
            ("OMPI_COMM_WORLD_RANK=0 OMPI_COMM_WORLD_SIZE=2 OMPI_COMM_WORLD_LOCAL_SIZE=1", "MASTER_ADDR"),
            ("DSTACK_NODE_RANK=0 DSTACK_NODES_NUM=2", "DSTACK_MASTER_NODE_IP"),
        ] {
            let error = found(variables).unwrap_err().to_string();
            assert!(error.contains(named), "{variables}: {error}");
        }
    }

    #[test]
    fn a_host_list_begins_with_a_host() {
        for (list, first) in [
            ("n[1-2]", "n1"),
            ("n[01-03,07],b5", "n01"),
            ("a,b", "a"),
            ("gpu-3", "gpu-3"),
            ("a[2]b[07-9]", "a2b07"),
        ] {
            assert_eq!(first_host(list).as_deref(), Some(first), "{list}");
        }
        assert_eq!(first_host("n[1"), None);
    }
}
