//! Namespaces of a template that could come to hold themselves, which printing or comparing them would never finish.

use std::collections::BTreeSet;

/// Words before a parenthesis that do not make it a call.
const NO_CALL: [&str; 9] = ["and", "call", "elif", "else", "if", "in", "is", "not", "or"];

/// Follows what could be a namespace through a template's text: a namespace is made by `{% set NAME = namespace(...) %}`
/// only, and no attribute of one is set to what may be, or hold, a namespace. Errs on the side of refusing; gives the line
/// and what stands there.
pub(super) fn check(text: &str) -> Result<(), (usize, String)> {
    let tags: Vec<Tag> = tags(text).into_iter().map(Tag::new).collect();
    let line = |token: &Token| 1 + text[..token.at].matches('\n').count();
    for tag in &tags {
        let stray = |(i, token): &(usize, &Token)| {
            token.text == "namespace" && tag.maker() != Some(*i) && tag.is_variable(*i)
        };
        if let Some((_, token)) = tag.tokens.iter().enumerate().find(stray) {
            let what = "makes a namespace elsewhere than in {% set NAME = namespace(...) %}";
            return Err((line(token), what.into()));
        }
    }
    let made = tags.iter().filter(|tag| tag.maker().is_some()).flat_map(|tag| tag.targets()).collect();
    let mut reach = Reach { made, flows: BTreeSet::new() };
    while reach.grow(&tags) {}
    let held = |tag: &&Tag| (tag.sets_attribute() || tag.maker().is_some()) && reach.holds(tag, tag.value());
    match tags.iter().find(held) {
        Some(tag) => Err((line(&tag.tokens[0]), "lets a namespace hold a namespace, perhaps itself".into())),
        None => Ok(()),
    }
}

/// What may be a namespace.
struct Reach<'a> {
    /// Names given to one when it is made: their attributes are none.
    made: BTreeSet<&'a str>,
    /// Names that get what may be one or hold one: so may their attributes.
    flows: BTreeSet<&'a str>,
}

impl<'a> Reach<'a> {
    fn holds(&self, tag: &Tag<'a>, range: std::ops::Range<usize>) -> bool {
        let may_be = |i: usize| {
            let text = tag.tokens[i].text;
            let bare = !matches!(tag.text(i + 1), "." | "[" | "is");
            tag.is_variable(i) && (self.flows.contains(text) || self.made.contains(text) && bare)
        };
        range.into_iter().any(may_be)
    }

    /// One round over all tags; whether there was something new.
    fn grow(&mut self, tags: &[Tag<'a>]) -> bool {
        let before = self.flows.len();
        for tag in tags {
            if tag.maker().is_none() && !tag.sets_attribute() && self.holds(tag, tag.value()) {
                self.flows.extend(tag.targets());
            }
            // Whoever is called may keep it or hand it on, macros and recursive loops among them.
            if tag.calls().into_iter().any(|arguments| self.holds(tag, arguments)) {
                let words = tag.tokens.iter().enumerate().filter(|(i, _)| tag.is_variable(*i));
                self.flows
                    .extend(words.map(|(_, token)| token.text).filter(|word| !self.made.contains(word)));
                let bind = |tag: &&Tag| matches!(tag.keyword(), "macro" | "call" | "for");
                self.flows.extend(tags.iter().filter(bind).flat_map(Tag::targets));
            }
        }
        self.flows.len() > before
    }
}

/// One `{{ ... }}` or `{% ... %}`.
struct Tag<'a> {
    tokens: Vec<Token<'a>>,
}

impl<'a> Tag<'a> {
    fn new(tokens: Vec<Token<'a>>) -> Self {
        let skipped = tokens.iter().take_while(|token| matches!(token.text, "-" | "+")).count();
        Self { tokens: tokens.into_iter().skip(skipped).collect() }
    }

    fn text(&self, i: usize) -> &'a str {
        self.tokens.get(i).map_or("", |token| token.text)
    }

    fn keyword(&self) -> &'a str {
        self.text(0)
    }

    /// A word that stands for a value: no attribute, no keyword argument.
    fn is_variable(&self, i: usize) -> bool {
        let is_attribute = i > 0 && self.text(i - 1) == ".";
        self.text(i).starts_with(is_word) && !is_attribute && self.text(i + 1) != "="
    }

    /// Where the `namespace` of `set NAME = namespace(` stands.
    fn maker(&self) -> Option<usize> {
        let is_maker = matches!(self.keyword(), "set" | "with")
            && self.text(2) == "="
            && self.text(3) == "namespace"
            && self.text(4) == "(";
        is_maker.then_some(3)
    }

    fn sets_attribute(&self) -> bool {
        self.keyword() == "set" && self.text(2) == "."
    }

    /// First token of what is assigned, looped over or given out.
    fn value(&self) -> std::ops::Range<usize> {
        let sign = match self.keyword() {
            "set" | "with" => "=",
            "for" => "in",
            _ => return 0..0,
        };
        let from = self.tokens.iter().position(|token| token.text == sign);
        from.map_or(0..0, |from| from + 1..self.tokens.len())
    }

    /// Names that the tag binds.
    fn targets(&self) -> BTreeSet<&'a str> {
        let end = match self.keyword() {
            "set" | "for" => self.value().start,
            "with" | "macro" | "call" => self.tokens.len(),
            _ => 0,
        };
        let words = self.tokens[..end].iter().skip(1).map(|token| token.text);
        words.filter(|word| word.starts_with(is_word) && *word != "in").collect()
    }

    /// The arguments of each call.
    fn calls(&self) -> Vec<std::ops::Range<usize>> {
        let mut found = Vec::new();
        for open in 1..self.tokens.len() {
            let before = self.text(open - 1);
            let is_call =
                before.starts_with(is_word) && !NO_CALL.contains(&before) || matches!(before, ")" | "]");
            if self.text(open) != "(" || !is_call || self.maker() == Some(open - 1) {
                continue;
            }
            let mut depth = 0usize;
            let is_end = |i: &usize| {
                match self.text(*i) {
                    "(" => depth += 1,
                    ")" => depth -= 1,
                    _ => {}
                }
                depth == 0
            };
            let end = (open..self.tokens.len()).find(is_end).unwrap_or(self.tokens.len());
            found.push(open + 1..end);
        }
        found
    }
}

struct Token<'a> {
    text: &'a str,
    /// Byte of the template's text.
    at: usize,
}

/// Words and signs of each `{{ ... }}` and `{% ... %}`; a quoted text is one token, its opening quote.
fn tags(text: &str) -> Vec<Vec<Token<'_>>> {
    let mut all = Vec::new();
    let mut at = 0;
    while let Some(found) = text[at..].find('{') {
        at += found + 1;
        let closing = match text.as_bytes().get(at) {
            Some(b'{') => '}',
            Some(b'%') => '%',
            Some(b'#') => {
                at = text[at..].find("#}").map_or(text.len(), |end| at + end + 2);
                continue;
            }
            _ => continue,
        };
        at += 1;
        let mut tag = Vec::new();
        at = read_tag(text, at, closing, &mut tag);
        let first = tag.iter().find(|token: &&Token| !matches!(token.text, "-" | "+"));
        if closing == '%' && first.is_some_and(|token| token.text == "raw") {
            at = text[at..].find("endraw").map_or(text.len(), |end| at + end);
        }
        all.push(tag);
    }
    all
}

/// Reads to behind the end of the tag, which is returned.
fn read_tag<'a>(text: &'a str, mut at: usize, closing: char, tag: &mut Vec<Token<'a>>) -> usize {
    let mut braces = 0usize;
    while let Some(c) = text[at..].chars().next() {
        let is_end = text[at..].starts_with(closing) && text[at + 1..].starts_with('}');
        if is_end && braces == 0 {
            return at + 2;
        }
        let length = match c {
            '\'' | '"' => quoted(&text[at..], c),
            c if is_word(c) => text[at..].find(|c| !is_word(c)).unwrap_or(text.len() - at),
            '=' if text[at..].starts_with("==") => 2,
            c => c.len_utf8(),
        };
        match c {
            '{' => braces += 1,
            '}' => braces = braces.saturating_sub(1),
            _ => {}
        }
        if !c.is_whitespace() {
            let shown = if matches!(c, '\'' | '"') { 1 } else { length };
            tag.push(Token { text: &text[at..at + shown], at });
        }
        at += length;
    }
    at
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Bytes of the quoted text that `text` begins with, its quotes included.
fn quoted(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (i, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == quote => return i + 1,
            _ => {}
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::check;

    #[test]
    fn a_namespace_that_may_hold_one_is_refused_with_its_line() {
        let make = "{% set ns = namespace(a='x') %}\n";
        for text in [
            "{% set ns.a = ns %}",
            "{% set ns.a = [1, ns] %}",
            "{% set ns.a = {'k': ns} %}",
            "{%- set ns.a = (ns) -%}",
            "{% set ns.a = 'x' if ns else ns | default(1) %}",
            "{% set b = ns %}{% set c = b %}{% set ns.a = c %}",
            "{% set b = {'k': ns} %}{% set c = b.k %}{% set ns.a = c %}",
            "{% set b = {'k': ns} %}{% set ns.a = b.k %}",
            "{% set (b, c) = (1, ns) %}{% set ns.a = b %}",
            "{% for b in [ns] %}{% set ns.a = b %}{% endfor %}",
            "{% with b = ns %}{% set ns.a = b %}{% endwith %}",
            "{% macro keep(it) %}{% set ns.a = it %}{% endmacro %}{{ keep(ns) }}",
            "{% macro keep(it) %}{% set ns.a = it %}{% endmacro %}{% set f = keep %}{{ f(it=[ns]) }}",
            "{% for b in [[1]] recursive %}{% set ns.a = b %}{{ loop([ns]) }}{% endfor %}",
            "{% set list = [] %}{% set _ = list.append(ns) %}{% set ns.a = list %}",
            "{% set other = namespace(k=ns) %}{% set ns.a = other.k %}",
            "{% set make = namespace %}",
            "{{ namespace(a=1) }}",
        ] {
            let (line, what) = check(&format!("{make}{text}")).unwrap_err();
            assert!(line == 2 && what.contains("namespace"), "{text}: {line} {what}");
        }
    }

    /// As real templates use them, a name that is a namespace here and a text there among them.
    #[test]
    fn a_namespace_of_texts_and_numbers_is_not() {
        for text in [
            "{% set ns = namespace(a=1) %}{% set ns.a = ns.a + 1 %}{{ ns.a }}{{ ns }}",
            "{% set ns = namespace(a=1) %}{% if ns is defined and ns['a'] %}{{ m.namespace }}{% endif %}",
            "{% for c in m %}{{ 'x' in c }}{% endfor %}{% set c = namespace(t='') %}\
             {% set c.t = c.t ~ m.c %}{% set c = c.t %}{{ ('a' + c) }}{{ '' if not(c) }}",
            "{% set ns = namespace(a=f(1), b=[2]) %}{% set b = f(ns.a) %}{% set ns.b = b %}",
            "{# {% set ns.a = ns %} #}{% raw %}{% set ns.a = ns %}{% endraw %}{% set ns = namespace() %}",
        ] {
            assert_eq!(check(text), Ok(()), "{text}");
        }
    }
}
