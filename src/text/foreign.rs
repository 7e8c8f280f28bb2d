//! Text from outside the program in a conversation: before the template sees it, a character of whatever could be taken for
//! a control token becomes a stand-in, and in the template's output every stand-in becomes that character again. So no
//! filter of a template has to be understood, and a row without such text is not touched.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::control::ControlTokens;
use crate::error::{Error, Result};
use crate::types::{Content, Conversation};

/// Private-use characters, 1,024 a block, one block of them a high surrogate: what JSON with `ensure_ascii` writes of them
/// cannot be taken for another block's.
const FIRST: u32 = 0xF_0000;
const BLOCK: u32 = 0x400;
const BLOCKS: u32 = 64;

/// A conversation as JSON: what a template gets.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Talk {
    pub messages: Vec<Value>,
    pub tools: Value,
}

/// What a template makes of contents that are no texts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Habits {
    /// It writes the texts of a list of parts.
    pub takes_parts: bool,
    /// It takes null beside tool calls and does not write the word None for it.
    pub takes_null: bool,
}

impl Talk {
    pub fn of(conversation: &Conversation, habits: Habits) -> Self {
        let messages = conversation.messages.iter().map(|message| {
            let mut object = message.to_json();
            match &message.content {
                Content::Parts(_) if !habits.takes_parts => object["content"] = message.text().into(),
                Content::None if !habits.takes_null => object["content"] = "".into(),
                _ => (),
            }
            object
        });
        Self { messages: messages.collect(), tools: conversation.tools.clone().unwrap_or_default() }
    }
}

/// A stand-in for each character that may have one.
#[derive(Clone, Debug)]
pub(super) struct StandIns {
    base: u32,
    /// The characters stood for, by their number.
    chars: Vec<char>,
}

impl StandIns {
    /// Of a block that `text` has none of, neither as characters nor as JSON's escapes.
    fn absent_from(text: &str, tokens: &ControlTokens) -> Result<Self> {
        let all: BTreeSet<char> = tokens.tokens().iter().flat_map(|token| token.content.chars()).collect();
        let chars: Vec<char> = all.into_iter().filter(|c| !c.is_whitespace()).collect();
        let used: BTreeSet<u32> = text
            .chars()
            .filter_map(|c| u32::from(c).checked_sub(FIRST))
            .map(|offset| offset / BLOCK)
            .collect();
        let is_free = |block: &u32| {
            !used.contains(block) && !text.contains(&format!("\\udb{:02x}", 0x80 + block)) && {
                chars.len() < BLOCK as usize
            }
        };
        let block = (0..BLOCKS).find(is_free).ok_or_else(|| {
            let fix = "Remove characters of Unicode's plane 15 from the row";
            Error::input("the conversation", "leaves no character free to mark control tokens with", fix)
        })?;
        Ok(Self { base: FIRST + block * BLOCK, chars })
    }

    fn of(&self, c: char) -> Option<char> {
        let index = self.chars.binary_search(&c).ok()?;
        char::from_u32(self.base + u32::try_from(index).ok()?)
    }

    fn original(&self, c: char) -> char {
        let index = u32::from(c).checked_sub(self.base).and_then(|i| usize::try_from(i).ok());
        index.and_then(|index| self.chars.get(index)).copied().unwrap_or(c)
    }

    /// The text with every character as it was.
    pub fn restore(&self, text: &str) -> String {
        text.chars().map(|c| self.original(c)).collect()
    }

    /// Escapes of stand-ins, which a template's JSON may have made of them, as the characters again.
    pub fn unescape(&self, text: String) -> String {
        let mut text = text;
        if text.contains(&format!("\\udb{:02x}", 0x80 + (self.base - FIRST) / BLOCK)) {
            let escaped = |c: char| -> String {
                c.encode_utf16(&mut [0; 2]).iter().map(|unit| format!("\\u{unit:04x}")).collect()
            };
            for original in &self.chars {
                let Some(c) = self.of(*original) else { continue };
                // Of a character that is escaped itself no token comes.
                let own = if original.is_ascii() { c.to_string() } else { escaped(*original) };
                text = text.replace(&escaped(c), &own);
            }
        }
        text
    }
}

/// A conversation with stand-ins.
#[derive(Debug)]
pub(super) struct Marked {
    pub talk: Talk,
    pub stand_ins: StandIns,
    /// Whether a text holds a whole control token; else there are pieces of some only, at the edges of texts.
    pub has_whole: bool,
}

/// The control tokens that stand in texts of the conversation, each once, but for those `trusted`.
pub(super) fn written_out(talk: &Talk, tokens: &ControlTokens, trusted: &[String]) -> Vec<String> {
    let mut found = Vec::new();
    each_text(talk, &mut |text, _| {
        for (_, token) in tokens.occurrences(text, trusted) {
            if !found.iter().any(|earlier| earlier == token) {
                found.push(token.to_string());
            }
        }
    });
    found
}

/// `None` where no text of the conversation could be taken for a part of a control token.
///
/// # Errors
/// The row uses up all characters that could stand in.
pub(super) fn marked(talk: &Talk, tokens: &ControlTokens, trusted: &[String]) -> Result<Option<Marked>> {
    let (mut has_whole, mut has_piece) = (false, false);
    let places = |text: &str, kind: Kind| {
        let whole = tokens.occurrences(text, trusted).into_iter().map(|(at, _)| at).collect::<Vec<_>>();
        // Templates compare a type with words of their own, some of which are pieces of tokens.
        let pieces = if kind == Kind::Type { Vec::new() } else { tokens.fragments(text) };
        (whole, pieces)
    };
    each_text(talk, &mut |text, kind| {
        let (whole, pieces) = places(text, kind);
        has_whole |= !whole.is_empty();
        has_piece |= !pieces.is_empty();
    });
    if !has_whole && !has_piece {
        return Ok(None);
    }
    let mut all = String::new();
    each_text(talk, &mut |text, _| all.push_str(text));
    let stand_ins = StandIns::absent_from(&all, tokens)?;
    let change = |text: &str, kind: Kind| {
        let (whole, pieces) = places(text, kind);
        let at: BTreeSet<usize> = whole.into_iter().chain(pieces).collect();
        let changed = text.char_indices().map(|(i, c)| match at.contains(&i) {
            true => stand_ins.of(c).unwrap_or(c),
            false => c,
        });
        changed.collect::<String>()
    };
    let messages = talk.messages.iter().map(|message| changed(message, Kind::Message, &change)).collect();
    let tools = changed(&talk.tools, Kind::Text, &change);
    Ok(Some(Marked { talk: Talk { messages, tools }, stand_ins, has_whole }))
}

/// What a value is to a template.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Message,
    /// A role is one of a few words, and templates make tokens of them.
    Role,
    Type,
    Text,
}

impl Kind {
    fn below(self, key: &str) -> Self {
        match (self, key) {
            (Self::Message, "role") => Self::Role,
            (_, "type") => Self::Type,
            _ => Self::Text,
        }
    }
}

fn each_text(talk: &Talk, see: &mut impl FnMut(&str, Kind)) {
    talk.messages.iter().for_each(|message| visit(message, Kind::Message, see));
    visit(&talk.tools, Kind::Text, see);
}

fn visit(value: &Value, kind: Kind, see: &mut impl FnMut(&str, Kind)) {
    match value {
        Value::String(text) if kind != Kind::Role => see(text, kind),
        Value::Array(list) => list.iter().for_each(|item| visit(item, Kind::Text, see)),
        Value::Object(map) => map.iter().for_each(|(key, item)| {
            if kind != Kind::Message {
                see(key, Kind::Type);
            }
            visit(item, kind.below(key), see);
        }),
        _ => (),
    }
}

fn changed(value: &Value, kind: Kind, change: &impl Fn(&str, Kind) -> String) -> Value {
    match value {
        Value::String(text) if kind != Kind::Role => change(text, kind).into(),
        Value::Array(list) => list.iter().map(|item| changed(item, Kind::Text, change)).collect(),
        Value::Object(map) => {
            let items = map.iter().map(|(key, item)| {
                let name = if kind == Kind::Message { key.clone() } else { change(key, Kind::Type) };
                (name, changed(item, kind.below(key), change))
            });
            Value::Object(items.collect::<Map<_, _>>())
        }
        other => other.clone(),
    }
}
