//! A key that there is not: what was meant?

use super::foreign::{self, Foreign};
use super::keys;
use super::layers::{Layers, Origin, is_under, leaves};
use crate::error::{Error, Result};

pub(super) const EVERY_KEY: &str =
    "`rlvr train demo --dry-run` prints every key with its value, and docs/config-reference.md explains them";

/// Other names of keys, which serde reads too.
const ALIASES: [(&str, &str); 1] = [("grpo.loss.dual_clip", "grpo.loss.delta")];

/// Suggestions of one error.
const MOST: usize = 3;

/// Refuses the first key that no type reads, by its whole path.
pub(super) fn refuse_unknown(layers: &Layers) -> Result<()> {
    let given = leaves(&layers.table);
    let type_of = |section: &str| {
        let key = format!("{section}.type");
        let said = given.iter().find(|(given, _)| *given == key).and_then(|(_, value)| value.as_str());
        // What is not said is the first type, the default of every section that has types.
        let first =
            || keys::all().find(|known| known.path == key)?.values.first().map(|(tag, _)| tag.as_str());
        said.or_else(first)
    };
    for (key, _) in &given {
        let read = ALIASES.iter().find(|(alias, _)| alias == key).map_or(key.as_str(), |(_, name)| name);
        let found = keys::all().find(|known| known.path == read || known.open && is_under(read, &known.path));
        let (problem, fix) = match found {
            None if keys::CONFIG.iter().any(|section| section.path == *key) => continue,
            None => (format!("no key is called `{key}`"), suggestion(key)),
            Some(known) if known.types.is_empty() => continue,
            Some(known) => {
                let section = known.path.rsplit_once('.').map_or("", |(section, _)| section);
                let Some(kind) = type_of(section) else { continue };
                if known.types.iter().any(|of| of == kind) {
                    continue;
                }
                let problem = format!("{section}.type = \"{kind}\" has no key `{key}`");
                (problem, format!("It is a key of the types {}", known.types.join(", ")))
            }
        };
        let place = match layers.origins.get(key) {
            Some(Origin::Set(text)) => format!("--set {text}"),
            Some(origin) => origin.to_string(),
            None => key.clone(),
        };
        let stop = if fix.ends_with('?') { "" } else { "." };
        return Err(Error::input(place, problem, format!("{fix}{stop} {EVERY_KEY}")));
    }
    Ok(())
}

/// What may have been meant by `key`: the same in another trainer's words, the same name in another section, or
/// something spelt like it.
pub(super) fn suggestion(key: &str) -> String {
    if let Some(found) = of_another(key) {
        let Foreign { of, name, ours, remark } = found;
        let heirs = ours.join(" and ");
        return match (ours.is_empty(), remark.is_empty()) {
            (true, _) => format!("It is {of}'s; here {remark}"),
            (false, true) => format!("{of}'s {name} is {heirs} here"),
            (false, false) => format!("{of}'s {name} is {heirs} here ({remark})"),
        };
    }
    let sections = keys::CONFIG.iter().filter(|section| !section.path.is_empty());
    let known = keys::all().map(|key| key.path.clone()).chain(sections.map(|s| format!("[{}]", s.path)));
    let near = known.filter_map(|known| Some((distance(key, known.trim_matches(['[', ']']))?, known)));
    let mut near: Vec<(usize, String)> = near.collect();
    near.sort_by_key(|(distance, _)| *distance);
    let best = near.first().map_or(0, |(distance, _)| *distance);
    let nearest = near.iter().take_while(|(distance, _)| *distance == best).take(MOST);
    let names: Vec<&str> = nearest.map(|(_, name)| name.as_str()).collect();
    let sections = || {
        let top = keys::CONFIG.iter().map(|section| section.path.as_str());
        top.filter(|path| !path.is_empty() && !path.contains('.')).collect::<Vec<_>>().join(", ")
    };
    match names.as_slice() {
        [] => format!("The sections are {}", sections()),
        [one] => format!("Did you mean {one}?"),
        [most @ .., last] => format!("Did you mean {} or {last}?", most.join(", ")),
    }
}

/// The entry with the longest name that `key` is or ends with.
fn of_another(key: &str) -> Option<&'static Foreign> {
    let ends = |name: &str| key == name || key.strip_suffix(name).is_some_and(|rest| rest.ends_with('.'));
    foreign::all().filter(|foreign| ends(foreign.name)).max_by_key(|foreign| foreign.name.len())
}

/// How far `key` is from a known one, in edits of its name and of its section, at most 3 of these, or of the whole path;
/// None where nobody would see a likeness.
fn distance(key: &str, known: &str) -> Option<usize> {
    let split = |path: &'_ str| -> (String, String) {
        path.rsplit_once('.')
            .map_or((String::new(), path.into()), |(section, name)| (section.into(), name.into()))
    };
    let ((section, name), (known_section, known_name)) = (split(key), split(known));
    // Below the section that was named is nearest, then a section spelt like it.
    let below = !section.is_empty() && is_under(&known_section, &section);
    let elsewhere = if below { 0 } else { strsim::damerau_levenshtein(&section, &known_section).min(3) };
    if name == known_name {
        return Some(elsewhere);
    }
    let far = strsim::damerau_levenshtein(&name, &known_name) + elsewhere;
    let whole = strsim::damerau_levenshtein(key, known);
    let likely = name.chars().count().max(known_name.chars().count()) / 3;
    Some(far.min(whole)).filter(|distance| *distance <= likely.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_found_by_another_name_another_section_and_a_slip() {
        for (key, want) in [
            ("num_generations", "TRL's num_generations is grpo.group_size here"),
            ("grpo.beta", "TRL's beta is grpo.kl_coef here"),
            ("actor_rollout_ref.rollout.n", "verl's rollout.n is grpo.group_size here"),
            ("trainer.test_freq", "verl's test_freq is eval.every_steps here"),
            ("load_in_4bit", "It is TRL's; here frozen weights"),
            ("grpo.temperature", "Did you mean grpo.sampling.temperature?"),
            ("sft.epoch", "Did you mean sft.epochs?"),
            ("grop.group_size", "Did you mean grpo.group_size?"),
            ("dat.train", "Did you mean data.train?"),
            ("sampling", "[grpo.sampling] or [eval.sampling]?"),
            ("model.ranodm", "Did you mean [model.random]?"),
            ("xyzzy.plugh", "The sections are run, model"),
        ] {
            let said = suggestion(key);
            assert!(said.contains(want), "{key}: {said}");
        }
    }
}
