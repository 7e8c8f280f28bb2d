//! The range of every number that a flag takes: that of the config's key which says the same, or its own.

use std::any::TypeId;
use std::fmt::Display;
use std::str::FromStr;

use clap::builder::ValueParser;
use clap::{Arg, Command};

use crate::config::keys;
use crate::config::range::Range;

/// What bounds a flag.
#[derive(Clone, Copy)]
enum Bound {
    /// The range of this key of a config.
    Key(&'static str),
    Own(f64, f64),
}

const TOKENS: Bound = Bound::Key("data.max_prompt_tokens");
const COUNT: Bound = Bound::Own(0.0, 1e9);
const SOME: Bound = Bound::Own(1.0, 1e6);
const SHARE: Bound = Bound::Own(0.0, 1.0);

/// By name; a flag means the same in every command.
const BOUNDS: &[(&str, Bound)] = &[
    ("threads", Bound::Key("threads")),
    ("seed", Bound::Own(0.0, u64::MAX as f64)),
    ("max_prompt_tokens", TOKENS),
    ("max_target_tokens", Bound::Key("data.max_target_tokens")),
    ("max_completion_tokens", Bound::Key("eval.max_completion_tokens")),
    ("max_rows", Bound::Key("data.max_train_rows")),
    ("samples", Bound::Key("eval.samples_per_prompt")),
    ("temperature", Bound::Key("eval.sampling.temperature")),
    ("group_size", Bound::Key("grpo.group_size")),
    ("groups", Bound::Key("grpo.prompts_per_step")),
    ("max_tokens_per_pack", Bound::Key("pack.max_tokens_per_pack")),
    ("max_rollout_tokens", Bound::Key("pack.max_rollout_tokens")),
    ("max_reused_tokens", Bound::Key("pack.max_reused_tokens")),
    ("lora_rank", Bound::Key("lora.rank")),
    ("rows", Bound::Key("data.synthetic.sft_rows")),
    ("valid_rows", Bound::Key("data.synthetic.valid_rows")),
    ("safe_share", Bound::Key("data.synthetic.sft_safe_share")),
    ("prompt_tokens", TOKENS),
    ("target_tokens", TOKENS),
    ("new_tokens", TOKENS),
    ("reward_rows", SOME),
    ("prompts", SOME),
    ("ranks", Bound::Own(1.0, 1024.0)),
    ("gpus", Bound::Own(1.0, 1024.0)),
    ("nodes", Bound::Own(1.0, 1024.0)),
    ("adapters", Bound::Own(1.0, 64.0)),
    ("mean_prompt_tokens", TOKENS),
    ("mean_answer_tokens", TOKENS),
    ("train_rows", COUNT),
    ("rounds", SOME),
    ("mib", Bound::Own(0.001, 65536.0)),
    ("steps", SOME),
    ("input_sets", SOME),
    ("ceiling_size", Bound::Own(0.0, 65536.0)),
    ("seconds", Bound::Own(0.0, 3600.0)),
    ("shard_gb", Bound::Own(0.0, 1e6)),
    ("peak_tflops", Bound::Own(0.0, 1e9)),
    ("memory_gib", Bound::Own(0.0, 1e6)),
    ("price_per_hour", Bound::Own(0.0, 1e12)),
    ("max_fpr", SHARE),
    ("valid", SHARE),
    ("test", SHARE),
    ("near", SHARE),
    ("max_problems", COUNT),
    ("row", COUNT),
    ("show", COUNT),
    ("probe_rows", COUNT),
];

fn range(flag: &str) -> Option<Range> {
    let (_, bound) = BOUNDS.iter().find(|(name, _)| *name == flag)?;
    match *bound {
        Bound::Key(key) => keys::range(key),
        Bound::Own(least, most) => Some(Range { least, most }),
    }
}

/// The command with every number of it and of its subcommands bounded.
pub fn bounded(command: Command) -> Command {
    command.mut_args(bounded_arg).mut_subcommands(bounded)
}

fn bounded_arg(arg: Arg) -> Arg {
    let Some(range) = range(arg.get_id().as_str()) else { return arg };
    let kind = arg.get_value_parser().type_id();
    let parser = if kind == TypeId::of::<usize>() {
        within::<usize>(range)
    } else if kind == TypeId::of::<u64>() {
        within::<u64>(range)
    } else if kind == TypeId::of::<f32>() {
        within::<f32>(range)
    } else if kind == TypeId::of::<f64>() {
        within::<f64>(range)
    } else {
        return arg;
    };
    arg.value_parser(parser)
}

fn within<T>(range: Range) -> ValueParser
where
    T: FromStr<Err: Display> + Clone + Send + Sync + 'static,
{
    ValueParser::new(move |text: &str| match (text.parse::<T>(), text.parse::<f64>()) {
        (Ok(number), Ok(wide)) if range.contains(wide) => Ok(number),
        (Err(error), Err(_)) => Err(error.to_string()),
        _ => Err(format!("must be from {range}")),
    })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::cli::Cli;

    /// With a parser of its own, which reads a unit and refuses what does not fit 64 bits.
    const WITH_A_UNIT: &str = "max_shard_size";

    fn all(command: &Command, found: &mut Vec<(String, Arg)>) {
        let numbers = [
            TypeId::of::<usize>(),
            TypeId::of::<u64>(),
            TypeId::of::<u32>(),
            TypeId::of::<i64>(),
            TypeId::of::<f32>(),
            TypeId::of::<f64>(),
        ];
        for arg in command.get_arguments() {
            let kind = arg.get_value_parser().type_id();
            if numbers.iter().any(|number| kind == *number) && arg.get_id() != WITH_A_UNIT {
                found.push((format!("{} {}", command.get_name(), arg.get_id()), arg.clone()));
            }
        }
        command.get_subcommands().for_each(|command| all(command, found));
    }

    #[test]
    fn every_number_of_every_command_is_refused_out_of_its_range() {
        let mut found = Vec::new();
        all(&bounded(Cli::command()), &mut found);
        assert!(found.len() > 40, "{}", found.len());
        for (name, arg) in found {
            let range = range(arg.get_id().as_str()).unwrap_or_else(|| panic!("{name} is missing in BOUNDS"));
            // Its own command may want other flags too.
            let alone = Arg::new("number").long("number").value_parser(arg.get_value_parser().clone());
            let alone = Command::new("alone").arg(alone);
            let parsed =
                |text: &str| alone.clone().try_get_matches_from(["alone", &format!("--number={text}")]);
            // A seed is any number of 64 bits.
            let fits = |text: &str| text.parse::<f64>().is_ok_and(|number| range.contains(number));
            let wrong = ["18446744073709551615", "1e308", "-1", "-1.5e300", "inf", "nan", "x", ""];
            for text in wrong.into_iter().filter(|text| !fits(text)) {
                let error = parsed(text).err().unwrap_or_else(|| panic!("{name} takes {text}"));
                assert_eq!(error.exit_code(), 2, "{name}");
            }
            let error = parsed("99999999999999999999").unwrap_err().to_string();
            assert!(
                error.contains(&format!("must be from {range}")) || error.contains("too large"),
                "{name}: {error}"
            );
            for end in [range.least, range.most.min(9e18)] {
                parsed(&end.to_string()).unwrap_or_else(|error| panic!("{name} at {end}: {error}"));
            }
        }
    }

    #[test]
    fn every_bound_is_of_a_flag_and_every_key_of_the_config() {
        let mut found = Vec::new();
        all(&bounded(Cli::command()), &mut found);
        for (name, _) in BOUNDS {
            assert!(range(name).is_some(), "{name}: the config has no such number");
            assert!(found.iter().any(|(_, arg)| arg.get_id() == name), "no flag is called {name}");
        }
    }
}
