//! llama.cpp's types of tokens, the entries of `tokenizer.ggml.token_type`.

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TokenType {
    Normal = 1,
    Control = 3,
    UserDefined = 4,
    /// A row of the embedding past the last token.
    Unused = 5,
}

impl TokenType {
    /// `None` for what means nothing here: unknown tokens and single bytes.
    pub(super) fn of(number: i64) -> Option<Self> {
        [Self::Normal, Self::Control, Self::UserDefined, Self::Unused]
            .into_iter()
            .find(|kind| *kind as i64 == number)
    }
}
