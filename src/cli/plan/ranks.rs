//! The cards of a plan: how many, what joins them, and who holds what.

use anyhow::Result;
use serde_json::{Value, json};

use super::{Duration, GIB, Planned};
use crate::config::{Config, pack};
use crate::error::Error;
use crate::model::config::ModelConfig;
use crate::plan::ranks::counts;
use crate::plan::scaling;
use crate::plan::time::{Gpu, Link, Network, SHARE};
use crate::plan::{Shard, World};

#[derive(clap::Args)]
pub struct Args {
    /// Cards of a node, a rank each.
    #[arg(long, value_name = "N", default_value_t = 1)]
    gpus: usize,
    /// Nodes of as many cards each.
    #[arg(long, value_name = "N", default_value_t = 1)]
    nodes: usize,
    /// What joins the cards: nvlink or pcie4 in a node, ib400 or eth25 between nodes; one of each with a comma. Default in a node:
    /// nvlink where the card has it.
    #[arg(long, value_name = "LINKS")]
    link: Option<String>,
    /// Network adapters of a node.
    #[arg(long, value_name = "N", default_value_t = 1)]
    adapters: usize,
    /// What of the optimiser a rank holds: its part, with its part of the gradients (zero2) or all of them (zero1), or
    /// everything (none). Default: pack.shard; of an adapter none.
    #[arg(long, value_name = "HOW")]
    shard: Option<String>,
}

/// The cards of a run.
#[derive(Clone, Copy)]
pub struct Ranks {
    pub world: World,
    /// `None` of one card.
    pub network: Option<Network>,
}

impl Args {
    /// `gpu`: the planned card; `cuda`: whether it is one.
    ///
    /// # Errors
    /// Links, shards or numbers that are none or do nothing; ranks without a group.
    pub fn on(&self, config: &Config, gpu: Option<Gpu>, cuda: bool) -> Result<Ranks> {
        let size = self.gpus * self.nodes;
        if size == 1 {
            for (flag, given) in [
                ("--link", self.link.is_some()),
                ("--shard", self.shard.is_some()),
                ("--adapters", self.adapters > 1),
            ] {
                if given {
                    let fix = "Leave it away, or give --gpus or --nodes";
                    return Err(Error::input(flag, "does nothing for one card", fix).into());
                }
            }
            return Ok(Ranks { world: World::ONE, network: None });
        }
        if !cuda {
            let fix = "Name the card with --gpu, or give --set device=cuda";
            return Err(Error::input("--gpus", "the plan is of a CPU", fix).into());
        }
        for (key, what, count) in counts(config) {
            if count < size {
                let problem =
                    format!("{key} is {count}: {} of {size} cards would have no {what}", size - count);
                let fix = format!("Give no more cards than {what}, or --set {key}={size}");
                return Err(Error::input("--gpus", problem, fix).into());
            }
        }
        if self.adapters > 1 && self.nodes == 1 {
            let fix = "Leave it away, or give --nodes";
            return Err(Error::input("--adapters", "does nothing in one node", fix).into());
        }
        let network = Network::new([self.gpus, self.nodes], &self.links()?, self.adapters, gpu)?;
        Ok(Ranks { world: World { size, shard: self.shard(config)? }, network: Some(network) })
    }

    fn links(&self) -> Result<Vec<Link>> {
        let names = self.link.iter().flat_map(|links| links.split(','));
        Ok(names.map(|name| Link::find(name.trim())).collect::<Result<_, _>>()?)
    }

    /// One step on one card and on many, in Markdown or as JSON lines.
    pub fn scaling(
        &self,
        model: &ModelConfig,
        config: &Config,
        answers: usize,
        gpu: Gpu,
        as_json: bool,
    ) -> Result<()> {
        let (mut between, inside): (Vec<_>, Vec<_>) =
            self.links()?.into_iter().partition(|link| link.between_nodes);
        if between.is_empty() {
            between.push(Link::find("ib400")?);
        }
        let rows = scaling::rows(model, config, answers, gpu, [&inside, &between], self.adapters)?;
        if !as_json {
            println!(
                "| trained | {} cards | joined by | GiB a card | sent, GB | waited, s | s a step | efficiency | same groups a card |",
                gpu.name
            );
            println!("|{}", "---|".repeat(9));
        }
        for row in rows {
            let sent = row.traffic.gradients + row.traffic.weights;
            if as_json {
                let json = json!({
                    "trained": row.trained, "gpu": gpu.name, "cards": row.cards, "links": row.links,
                    "peak_bytes": row.peak, "bytes_sent": sent, "waited_seconds": row.traffic.seconds,
                    "step_seconds": row.step, "efficiency": row.efficiency, "efficiency_same_groups": row.weak,
                });
                println!("{json}");
                continue;
            }
            println!(
                "| {} | {} | {} | {:.1} | {:.2} | {:.3} | {:.2} | {:.2} | {:.2} |",
                row.trained,
                row.cards,
                row.links,
                row.peak as f64 / GIB,
                sent / 1e9,
                row.traffic.seconds,
                row.step,
                row.efficiency,
                row.weak
            );
        }
        Ok(())
    }

    fn shard(&self, config: &Config) -> Result<Shard> {
        let adapter = config.lora.is_some();
        let Some(name) = &self.shard else {
            return Ok(match config.pack.shard {
                _ if adapter => Shard::None,
                pack::Shard::Zero1 => Shard::Zero1,
                pack::Shard::Zero2 => Shard::Zero2,
            });
        };
        let known = Shard::ALL.map(Shard::name).join(", ");
        let found = Shard::ALL.into_iter().find(|shard| shard.name() == name);
        let why = "it is how the optimiser is cut";
        let shard = found.ok_or_else(|| Error::config("--shard", name, format!("one of {known}"), why))?;
        if adapter && shard != Shard::None {
            let why = "an adapter is small: its gradients are all-reduced and every rank holds its moments";
            return Err(Error::config("--shard", name, "none with [lora]", why).into());
        }
        Ok(shard)
    }
}

/// Steps that do not divide by the ranks, in words.
fn uneven(config: &Config, size: usize) -> Vec<String> {
    let one = |(key, what, count): (&str, &str, usize)| {
        let (least, more) = (count / size, count % size);
        let text = format!(
            "{key} {count} on {size} cards: {more} have {} {what}, {} have {least} and wait for them",
            least + 1,
            size - more
        );
        (more > 0).then_some(text)
    };
    counts(config).filter_map(one).collect()
}

pub fn heading(planned: &Planned) {
    let Ranks { world, network: Some(network) } = planned.ranks else { return };
    let (size, shard) = (world.size, world.shard.name());
    let nodes = if network.nodes == 1 { "node" } else { "nodes" };
    println!(
        "cards    {size}: {} {nodes} of {}, {shard}; {}",
        network.nodes,
        network.gpus,
        network.describe()
    );
    uneven(&planned.config, size).iter().for_each(|line| println!("uneven   {line}"));
    println!("What follows is of the fullest rank, computed and not measured.");
}

/// What a card sends and waits for, and how much faster all of them are than one.
pub fn traffic(planned: &Planned, duration: &Duration) {
    let Ranks { world, network: Some(_) } = planned.ranks else { return };
    println!(
        "\nbetween the cards, a step (computed: rings at {SHARE} of the links' rate)\n{:<12}{:>12}{:>14}{:>12}{:>11}{:>9}{:>12}",
        "", "collectives", "gradients, GB", "weights, GB", "waited, s", "times", "efficiency"
    );
    for (leg, alone) in duration.legs.iter().zip(&duration.alone) {
        let (t, times) = (leg.traffic, alone / leg.step());
        println!(
            "{:<12}{:>12}{:>14.2}{:>12.2}{:>11.3}{:>9.2}{:>12.2}",
            leg.what,
            t.collectives,
            t.gradients / 1e9,
            t.weights / 1e9,
            t.seconds,
            times,
            times / world.size as f64
        );
    }
}

/// Of the cards themselves, and of each stage's traffic where times are known.
pub fn json(planned: &Planned) -> Option<Value> {
    let Ranks { world, network: Some(network) } = planned.ranks else { return None };
    let mut object = json!({
        "size": world.size, "nodes": network.nodes, "gpus": network.gpus, "shard": world.shard.name(),
        "links": network.describe(), "uneven": uneven(&planned.config, world.size),
    });
    if let Some(duration) = &planned.duration {
        let stages = duration.legs.iter().zip(&duration.alone).map(|(leg, alone)| {
            let t = leg.traffic;
            json!({
                "of": leg.what, "collectives": t.collectives, "gradient_bytes_sent": t.gradients,
                "weight_bytes_sent": t.weights, "waited_seconds": t.seconds,
                "seconds_alone": alone, "efficiency": alone / leg.step() / world.size as f64,
            })
        });
        object["steps"] = stages.collect();
    }
    Some(object)
}
