//! What `[pack]` leaves to `"auto"`: the fastest that fits.

use super::{Plan, Rank, World};
use crate::config::{ActivationMemory, Config, PackConfig, Stage, TokenBudget};
use crate::model::config::ModelConfig;

/// What a device keeps for its own: context, and library kernels that are loaded when they are first used.
pub const RESERVED: u64 = 3 << 29;

/// What was chosen, and what it takes.
#[derive(Clone, Debug, PartialEq)]
pub struct Settled {
    pub activations: ActivationMemory,
    pub max_reused_tokens: usize,
    pub max_rollout_tokens: usize,
    /// Planned peak, bytes.
    pub peak: u64,
}

/// Replaces what is left to `auto` in `config`; `None` when nothing is. `memory`: bytes of the device, which must be
/// known for more than the least to be chosen. On the CPU, whose memory is shared with others, block inputs are kept
/// and 8,192 tokens used again, however much there is.
pub fn settle(
    config: &mut Config,
    model: &ModelConfig,
    rank: impl Into<Rank>,
    memory: Option<u64>,
) -> Option<Settled> {
    let rank = rank.into();
    let Rank { target, world } = rank;
    let pack = &config.pack;
    if pack.activations != ActivationMemory::Auto
        && ![pack.max_reused_tokens, pack.max_rollout_tokens].contains(&TokenBudget::Auto)
    {
        return None;
    }
    let fits = |peak: u64| !target.cuda || memory.is_some_and(|all| peak + RESERVED <= all);
    let peak = |config: &Config| Plan::new(model, config, rank).peak();
    let mut best: Option<(f64, u64, Config)> = None;
    for (activations, reused) in candidates(config, rank) {
        let mut tried = config.clone();
        (tried.pack.activations, tried.pack.max_reused_tokens) = (activations, TokenBudget::Tokens(reused));
        let (peak, work) = (peak(&tried), again(&tried, model, activations, reused, world));
        let better = match &best {
            None => true,
            // Nothing fits, or not all is known: the least memory.
            Some((_, other, _)) if !fits(*other) => peak < *other,
            Some((least, other, _)) => {
                fits(peak) && (work < *least - 1e-9 || (work < *least + 1e-9 && peak < *other))
            }
        };
        if better {
            best = Some((work, peak, tried));
        }
    }
    let (_, mut planned, mut chosen) = best?;
    if chosen.pack.max_rollout_tokens == TokenBudget::Auto {
        chosen.pack.max_rollout_tokens = TokenBudget::Tokens(PackConfig::ROLLOUT_TOKENS);
        // A pack more reads all weights once more for every token that is decoded.
        let fewer = rollout_packs(&chosen, rank).find_map(|tokens| {
            let mut tried = chosen.clone();
            tried.pack.max_rollout_tokens = TokenBudget::Tokens(tokens);
            let peak = peak(&tried);
            (memory.is_some() && fits(peak)).then_some((peak, tried))
        });
        if let Some(fewer) = fewer {
            (planned, chosen) = fewer;
        }
    }
    let pack = &chosen.pack;
    let settled = Settled {
        activations: pack.activations,
        max_reused_tokens: pack.reused_tokens(),
        max_rollout_tokens: pack.rollout_tokens(),
        peak: planned,
    };
    *config = chosen;
    Some(settled)
}

/// Tokens of a rollout in one pack, two, and so on, as long as that is more than is usual.
fn rollout_packs(config: &Config, Rank { target, world }: Rank) -> impl Iterator<Item = usize> + use<> {
    let (groups, tokens) = (world.share(config.grpo.prompts_per_step), group_tokens(config));
    let possible = target.cuda && config.stages.contains(&Stage::Grpo);
    let packs = 1..=if possible { groups } else { 0 };
    let most = packs.map(move |packs| groups.div_ceil(packs) * tokens);
    most.take_while(|tokens| *tokens > PackConfig::ROLLOUT_TOKENS)
}

fn candidates(config: &Config, Rank { target, world }: Rank) -> Vec<(ActivationMemory, usize)> {
    let activations = match config.pack.activations {
        ActivationMemory::Auto if !target.cuda => vec![ActivationMemory::Recompute],
        ActivationMemory::Auto => vec![ActivationMemory::Recompute, ActivationMemory::Keep],
        given => vec![given],
    };
    let reused = match config.pack.max_reused_tokens {
        TokenBudget::Tokens(tokens) => vec![tokens],
        TokenBudget::Auto if !target.cuda => vec![PackConfig::REUSED_TOKENS],
        TokenBudget::Auto if !config.stages.contains(&Stage::Grpo) => vec![0],
        TokenBudget::Auto => (0..=world.share(config.grpo.prompts_per_step))
            .map(|groups| groups * group_tokens(config))
            .collect(),
    };
    activations.iter().flat_map(|a| reused.iter().map(|tokens| (*a, *tokens))).collect()
}

/// Tokens of the largest group.
fn group_tokens(config: &Config) -> usize {
    config.data.max_prompt_tokens + config.grpo.group_size * config.grpo.max_completion_tokens
}

/// Forward passes that an update computes beside its backward pass: its own, of what no rollout kept, and of blocks
/// whose inputs alone were kept.
fn again(
    config: &Config,
    model: &ModelConfig,
    activations: ActivationMemory,
    reused: usize,
    world: World,
) -> f64 {
    let step = world.share(config.grpo.prompts_per_step) * group_tokens(config);
    let own = match config.stages.contains(&Stage::Grpo) {
        true => 1.0 - reused.min(step) as f64 / step.max(1) as f64,
        false => 1.0,
    };
    let all = model.matmul_parameter_count() as f64;
    let head = (model.vocab_size * model.hidden_size) as f64;
    let down = (model.num_hidden_layers * model.hidden_size * model.intermediate_size) as f64;
    let recomputed = if activations == ActivationMemory::Keep { 0.0 } else { (all - head - down) / all };
    own + recomputed
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Target, shapes};

    const CUDA: Target = Target { cuda: true, dtype: candle_core::DType::BF16, answers: 0 };
    const GIB: u64 = 1 << 30;

    fn settled(settings: &[&str], target: Target, memory: Option<u64>) -> (Config, Option<Settled>) {
        let step = ["data.max_prompt_tokens=1500", "grpo.max_completion_tokens=40", "stages=[\"grpo\"]"];
        let settings: Vec<String> = step.iter().chain(settings).map(|s| s.to_string()).collect();
        let mut config = Config::load("riskcue-llama3.1-8b", &settings).unwrap();
        let settled = settle(&mut config, &shapes::find("llama-3.1-8b").unwrap(), target, memory);
        (config, settled)
    }

    #[test]
    fn more_memory_is_less_work_and_never_more_than_there_is() {
        let auto = ["pack.activations=\"auto\"", "pack.max_reused_tokens=\"auto\""];
        let mut least = f64::INFINITY;
        for gib in [48, 52, 56, 60, 64, 70, 78, 96, 141, 400] {
            let (config, found) = settled(&auto, CUDA, Some(gib * GIB));
            let found = found.unwrap();
            let model = shapes::find("llama-3.1-8b").unwrap();
            let work = again(&config, &model, found.activations, found.max_reused_tokens, World::ONE);
            assert!(work <= least, "{gib} GiB: {found:?}");
            least = work;
            let fits = found.peak + RESERVED <= gib * GIB;
            assert!(
                fits || (found.max_reused_tokens == 0 && found.activations == ActivationMemory::Recompute)
            );
            assert_eq!(Plan::new(&model, &config, CUDA).peak(), found.peak, "train and plan agree");
        }
        assert!(least < 1e-9, "with memory enough nothing is computed twice");
    }

    #[test]
    fn what_is_given_stays_and_what_is_not_known_is_the_least() {
        let (config, found) =
            settled(&["pack.activations=\"keep\"", "pack.max_reused_tokens=0"], CUDA, Some(GIB));
        assert_eq!(config.pack.activations, ActivationMemory::Keep);
        assert_eq!(
            found.unwrap().max_rollout_tokens,
            PackConfig::ROLLOUT_TOKENS,
            "one GiB has room for no more"
        );
        let all = ["pack.activations=\"keep\"", "pack.max_reused_tokens=0", "pack.max_rollout_tokens=4096"];
        assert_eq!(settled(&all, CUDA, Some(GIB)).1, None);
        let keep = ["pack.activations=\"keep\"", "pack.max_reused_tokens=\"auto\""];
        let (config, found) = settled(&keep, CUDA, Some(78 * GIB));
        assert_eq!(config.pack.activations, ActivationMemory::Keep);
        assert!(found.unwrap().peak + RESERVED <= 78 * GIB);
        let auto = ["pack.activations=\"auto\"", "pack.max_reused_tokens=\"auto\""];
        let (_, unknown) = settled(&auto, CUDA, None);
        let unknown = unknown.unwrap();
        assert_eq!((unknown.activations, unknown.max_reused_tokens), (ActivationMemory::Recompute, 0));
        let cpu = Target { cuda: false, dtype: candle_core::DType::F32, answers: 0 };
        let (_, there) = settled(&auto, cpu, Some(GIB));
        let there = there.unwrap();
        assert_eq!((there.activations, there.max_reused_tokens), (ActivationMemory::Recompute, 8192));
        assert_eq!(there.max_rollout_tokens, 32768);
        // 32 groups of 1,820 tokens: at once, where there is room.
        let (_, roomy) = settled(&auto, CUDA, Some(141 * GIB));
        assert_eq!(roomy.unwrap().max_rollout_tokens, 32 * 1820);
    }
}
