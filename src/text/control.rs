//! The tokenizer's added tokens that make the structure of a prompt, and where a text has them.

use std::collections::HashSet;
use std::ops::Range;

use regex::Regex;
use tokenizers::AddedToken;

/// What [`ControlTokens`] are made of: every added token but white space (a run of blanks is a token of some tokenizers and no
/// control) and the phrases of tokenizers that rlvr built.
#[derive(Clone, Debug, Default)]
pub(super) struct ControlTokens {
    /// By id.
    tokens: Vec<AddedToken>,
    /// Those matched before and after the normaliser, as the tokenizer does.
    raw: Option<Regex>,
    normalized: Option<Regex>,
    /// Either kind.
    any: Option<Regex>,
    /// Proper beginnings and ends of all of them.
    beginnings: HashSet<String>,
    ends: HashSet<String>,
    /// Bytes of the longest.
    longest: usize,
}

impl ControlTokens {
    pub fn new(mut tokens: Vec<AddedToken>) -> Self {
        tokens.retain(|token| !token.content.trim().is_empty());
        let of = |wanted: &dyn Fn(&AddedToken) -> bool| {
            let mut texts: Vec<&str> =
                tokens.iter().filter(|token| wanted(token)).map(|token| token.content.as_str()).collect();
            // Leftmost-first over falling lengths is leftmost-longest.
            texts.sort_by_key(|text| std::cmp::Reverse(text.len()));
            let any = texts.into_iter().map(regex::escape).collect::<Vec<_>>().join("|");
            // Escaped texts always compile; 64 MiB are some 100,000 of them.
            let regex = regex::RegexBuilder::new(&any).size_limit(1 << 26).build().ok();
            regex.filter(|_| !any.is_empty())
        };
        let (raw, normalized, any) = (of(&|t| !t.normalized), of(&|t| t.normalized), of(&|_| true));
        let cuts = |text: &str| text.char_indices().map(|(at, _)| at).skip(1).collect::<Vec<_>>();
        let (mut beginnings, mut ends) = (HashSet::new(), HashSet::new());
        for text in tokens.iter().map(|token| &token.content) {
            for at in cuts(text) {
                beginnings.insert(text[..at].to_string());
                ends.insert(text[at..].to_string());
            }
        }
        let longest = tokens.iter().map(|token| token.content.len()).max().unwrap_or(0);
        Self { tokens, raw, normalized, any, beginnings, ends, longest }
    }

    pub fn tokens(&self) -> &[AddedToken] {
        &self.tokens
    }

    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// Whether the tokenizer looks for some of them in the normalised text.
    pub fn any_normalized(&self) -> bool {
        self.normalized.is_some()
    }

    /// Every occurrence of one that is not `trusted`, overlapping ones too: where its first visible character stands, and
    /// the token.
    pub fn occurrences<'a>(&self, text: &'a str, trusted: &[String]) -> Vec<(usize, &'a str)> {
        let Some(any) = &self.any else { return Vec::new() };
        let (mut found, mut from) = (Vec::new(), 0);
        while let Some(hit) = any.find_at(text, from) {
            let here = hit.start();
            let first = text[here..].chars().next().map_or(1, char::len_utf8);
            from = here + first;
            let mut token = hit.as_str();
            if trusted.iter().any(|t| t == token) {
                let others = self.tokens.iter().map(|t| t.content.as_str());
                let other = others
                    .filter(|t| text[here..].starts_with(t) && !trusted.iter().any(|trusted| trusted == t));
                let Some(length) = other.map(str::len).max() else { continue };
                token = &text[here..here + length];
            }
            let blank = token.len() - token.trim_start().len();
            found.push((here + blank, token));
        }
        found
    }

    /// Where a piece of one stands at an edge of `text`, or `text` is itself a piece: characters that, changed, keep any
    /// neighbour from making it whole. Blanks at the edges do not count: a template may trim them.
    pub fn fragments(&self, text: &str) -> Vec<usize> {
        let visible = text.trim();
        let start = text.len() - text.trim_start().len();
        let mut at = Vec::new();
        let cuts = |from: usize, to: usize| {
            (from..=to).filter(|cut| visible.is_char_boundary(*cut)).collect::<Vec<_>>()
        };
        let first = |piece: &str| piece.len() - piece.trim_start().len();
        for cut in cuts(visible.len().saturating_sub(self.longest), visible.len()) {
            if self.beginnings.contains(&visible[cut..]) {
                at.push(start + cut + first(&visible[cut..]));
            }
        }
        for cut in cuts(0, self.longest.min(visible.len())) {
            if self.ends.contains(&visible[..cut]) {
                let last = visible[..cut].trim_end().char_indices().last().map_or(0, |(at, _)| at);
                at.push(start + last);
            }
        }
        let inside =
            |token: &AddedToken| token.content.len() > visible.len() && token.content.contains(visible);
        if !visible.is_empty() && visible.len() < self.longest && self.tokens.iter().any(inside) {
            at.push(start);
        }
        at
    }

    /// The tokens that the tokenizer would find in `text`, in their order: bytes, and the index in [`Self::tokens`].
    pub fn found_in(&self, text: &str) -> Vec<(Range<usize>, usize)> {
        let mut found = self.matches(self.raw.as_ref(), text, 0..text.len());
        let Some(normalized) = &self.normalized else { return found };
        let ends = found.iter().map(|(range, _)| range.start).chain([text.len()]);
        let starts = [0].into_iter().chain(found.iter().map(|(range, _)| range.end));
        let gaps: Vec<Range<usize>> = starts.zip(ends).map(|(start, end)| start..end).collect();
        for gap in gaps {
            found.extend(self.matches(Some(normalized), text, gap));
        }
        found.sort_by_key(|(range, _)| range.start);
        found
    }

    fn matches(&self, regex: Option<&Regex>, text: &str, within: Range<usize>) -> Vec<(Range<usize>, usize)> {
        let Some(regex) = regex else { return Vec::new() };
        let piece = &text[within.clone()];
        let is_word = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
        let hits = regex.find_iter(piece).filter_map(|hit| {
            let index = self.tokens.iter().position(|token| token.content == hit.as_str())?;
            let beside = [piece[..hit.start()].chars().next_back(), piece[hit.end()..].chars().next()];
            let discarded = self.tokens[index].single_word && beside.into_iter().any(is_word);
            (!discarded).then_some((within.start + hit.start()..within.start + hit.end(), index))
        });
        hits.collect()
    }
}
